"""`cascade`: take a draft whose score and checks pass, else continue from where they agree.

With `scorer: self` or `entropy` the drafter's own numbers decide, and the refiner reads nothing
unless they fail.
"""

from hybrid.refiners.context import Outcome, RefineContext, continue_from
from hybrid.refiners.verdict import evaluate_draft
from hybrid.refiners.verify import count_agreed


def cascade(context: RefineContext) -> Outcome:
    """The draft if it passes, else the refiner's own answer from the first disagreement.

    A draft without an end token is unfinished and never passes.
    """
    draft, token_ids = context.draft, context.token_ids
    ends = context.need_refiner().end_token_ids
    scores = context.read(token_ids) if context.params.scorer == "refiner" else None
    logprobs = scores.logprobs if scores else context.logprobs(draft)
    verdict = evaluate_draft(logprobs, context.params, context.failed_checks(draft.text))
    is_whole = bool(token_ids) and token_ids[-1] in ends
    if verdict.accepted and is_whole:
        text = context.decode(token_ids)
        return Outcome(verdict, token_ids, text, len(token_ids), "stop")
    scores = scores or context.read(token_ids)
    agreed = count_agreed(token_ids, scores.choices, ends)
    return continue_from(context, agreed, scores.choices[agreed], verdict)
