"""What a refine mode works with and what it leaves."""

from dataclasses import dataclass

from hybrid.deadline import Deadline
from hybrid.protocols import RefinerSession
from hybrid.types import Draft, FinishReason, RefineParams, Verdict


@dataclass(frozen=True, slots=True)
class Assignment:
    """A draft to refine, and what it may cost. No mode reads draft tokens past `max_new_tokens`."""

    draft: Draft
    params: RefineParams
    max_new_tokens: int
    deadline: Deadline
    end_token_ids: frozenset[int]
    failed_checks: tuple[str, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The draft's tokens as far as an answer may go."""
        return self.draft.token_ids[: self.max_new_tokens]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A refined answer: how many draft tokens survive at its start, and why it ends."""

    verdict: Verdict | None
    token_ids: tuple[int, ...]
    accepted_tokens: int
    finish_reason: FinishReason


def continue_from(
    session: RefinerSession,
    kept: tuple[int, ...],
    following: int,
    assignment: Assignment,
    verdict: Verdict | None,
) -> Outcome:
    """`kept` draft tokens, then the refiner's own `following` token and all that comes after.

    Nothing comes after an end token. The session must have read at least `kept`; what it read
    beyond that is forgotten.
    """
    if kept and kept[-1] in assignment.end_token_ids:
        return Outcome(verdict, kept, len(kept), "stop")
    room = assignment.max_new_tokens - len(kept)
    if room <= 0:
        return Outcome(verdict, kept, len(kept), "length")
    written: tuple[int, ...] = (following,)
    reason: FinishReason = "stop"
    if following not in assignment.end_token_ids:
        reason = "length"
        if room > 1:
            session.rewind(len(kept))
            rest, reason = session.continue_greedily(written, room - 1, assignment.deadline)
            written += rest
    return Outcome(verdict, kept + written, len(kept), reason)
