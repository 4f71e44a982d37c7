"""What a refine mode works with and what it leaves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from hybrid.deadline import Deadline
from hybrid.errors import CapabilityError
from hybrid.protocols import Refiner, RefinerSession, SamplingParams, Scores
from hybrid.refiners.written_text import OnTokens, reporting
from hybrid.types import Draft, FinishReason, RefineParams, Request, Scorer, Verdict

FixedTokens = tuple[int | None, ...]


@dataclass(frozen=True)
class RefineContext:
    """A draft to refine, and what may be used for it.

    No mode reads draft tokens past `max_new_tokens`. `failed_checks` names the checks that a text
    fails. `redraft` denoises the canvas again: None where it may write, token ids elsewhere.
    `more_drafts` are further drafts of the same prompt. `session` is the refiner's one session for
    all that is done, so that the prompt is read once; `opened` if it is at work already.
    `on_tokens` is told the answer's tokens so far while the refiner writes them.
    """

    request: Request
    draft: Draft
    params: RefineParams
    max_new_tokens: int
    deadline: Deadline
    refiner: Refiner | None = None
    sampling: SamplingParams | None = None
    failed_checks: Callable[[str], tuple[str, ...]] = lambda text: ()
    redraft: Callable[[FixedTokens], Draft] | None = None
    more_drafts: Sequence[Draft] = ()
    opened: RefinerSession | None = None
    on_tokens: OnTokens | None = None

    @cached_property
    def session(self) -> RefinerSession:
        """The refiner's; raises CapabilityError without a refiner."""
        if self.opened is not None:
            return self.opened
        refiner = self.need_refiner()
        return refiner.open(self.request, self.max_new_tokens, self.deadline, self.sampling)

    @property
    def forward_passes(self) -> int:
        """The refiner's so far."""
        session = self.__dict__.get("session", self.opened)
        return session.forward_passes if session else 0

    @property
    def limit(self) -> int:
        """Most tokens of a refined answer."""
        return min(self.max_new_tokens, self.session.max_answer_tokens)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The draft's tokens as far as an answer may go."""
        return self.draft.token_ids[: self.limit]

    def thought(self, token_ids: tuple[int, ...]) -> str:
        """What an answer's tokens think: a draft's, or as the refiner reads it."""
        drafts = (d for d in (self.draft, *self.more_drafts) if d.token_ids == token_ids)
        if (known := next(drafts, None)) is not None:
            return known.thought
        return self.refiner.decode_thought(token_ids) if self.refiner else ""

    def need_refiner(self) -> Refiner:
        """The refiner; raises CapabilityError without one."""
        if self.refiner is None:
            operation = f"refine mode {self.params.mode}"
            raise CapabilityError(operation, "this policy", "it names no refiner")
        return self.refiner

    def read(self, token_ids: Sequence[int]) -> Scores:
        """The refiner's view of a whole answer, in one pass after the prompt."""
        self.session.rewind(0)
        return self.session.score(token_ids)

    def logprobs(self, draft: Draft, scorer: Scorer | None = None) -> tuple[float, ...]:
        """How sure a scorer (the policy's) is of every token; `entropy` counts as its opposite."""
        match scorer or self.params.scorer:
            case "self":
                return draft.self_logprobs
            case "entropy":
                return tuple(-value for value in draft.entropy)
            case "refiner":
                if not draft.token_ids:
                    return ()
                return self.read(draft.token_ids[: self.limit]).logprobs

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of an answer that the refiner has a part in."""
        return self.need_refiner().decode(token_ids)

    def keep(self, verdict: Verdict | None) -> "Outcome":
        """The draft as it is."""
        draft = self.draft
        kept = len(draft.token_ids)
        return Outcome(verdict, draft.token_ids, draft.text, kept, draft.finish_reason)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A refined answer: how many draft tokens survive, why it ends, and why it differs.

    `more_passes` are the refiner's outside the context's session.
    """

    verdict: Verdict | None
    token_ids: tuple[int, ...]
    text: str
    accepted_tokens: int
    finish_reason: FinishReason
    why: str = ""
    denoising_steps: int = 0
    more_passes: int = 0


def continue_from(
    context: RefineContext, agreed: int, following: int, verdict: Verdict | None
) -> Outcome:
    """The first `agreed` draft tokens, the refiner's own `following` one, and all that comes after.

    Nothing comes after an end token. The session must have read at least what is kept; what it read
    beyond that is forgotten.
    """
    kept, ends = context.token_ids[:agreed], context.need_refiner().end_token_ids
    room = context.limit - len(kept)
    written: tuple[int, ...] = ()
    reason: FinishReason = "length"
    if kept and kept[-1] in ends:
        reason = "stop"
    elif room > 0:
        written = (following,)
        if following in ends:
            reason = "stop"
        elif room > 1:
            context.session.rewind(len(kept))
            report = reporting(context.on_tokens, kept + written)
            rest, reason = context.session.write(written, room - 1, report)
            written += rest
    token_ids = kept + written
    why = f"the refiner goes its own way from token {len(kept) + 1}" if written else "cut short"
    return Outcome(verdict, token_ids, context.decode(token_ids), len(kept), reason, why)
