"""`rewrite`: the refiner writes a final answer with the draft in its prompt.

The draft is also what its words are expected to repeat, so a run of copied tokens costs one pass.
The answer is token for token what the refiner writes after that prompt without such help.
"""

from dataclasses import replace
from difflib import SequenceMatcher

from hybrid.errors import CapabilityError
from hybrid.refiners.context import Outcome, RefineContext
from hybrid.refiners.written_text import reporting
from hybrid.types import Message, Request

_ASK = (
    "{prompt}\n\nA draft of the answer:\n{draft}\n\n"
    "Correct what is wrong in the draft, keep what is right, and reply with the answer alone."
)


def rewrite(context: RefineContext) -> Outcome:
    """The refiner's answer to the request and the draft together."""
    refiner, draft = context.need_refiner(), context.draft
    session = refiner.open(
        with_draft(context.request, draft.text),
        context.max_new_tokens,
        context.deadline,
        context.sampling,
    )
    limit = min(context.max_new_tokens, session.max_answer_tokens)
    token_ids, reason = session.write(
        (), limit, reporting(context.on_tokens), source=draft.token_ids
    )
    blocks = SequenceMatcher(None, draft.token_ids, token_ids, False).get_matching_blocks()
    kept = sum(block.size for block in blocks)
    why = "rewritten by the refiner, which had read the draft"
    passes, text = session.forward_passes, refiner.decode(token_ids)
    return Outcome(None, token_ids, text, kept, reason, why, more_passes=passes)


def with_draft(request: Request, draft: str) -> Request:
    """The request with a draft of its answer in the last message.

    Raises CapabilityError for a conversation to be continued: the refiner would begin anew.
    """
    *before, last = request.conversation
    if last.role == "assistant":
        missing = "it writes the answer anew; end with a user's message, or choose another mode"
        raise CapabilityError("rewrite", "a conversation that is to be continued", missing)
    content = _ASK.format(prompt=last.content, draft=draft)
    return replace(request, prompt="", messages=(*before, Message(last.role, content)))
