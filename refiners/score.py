"""`score`: one pass attaches the refiner's log-probabilities; the draft is the answer."""

from hybrid.protocols import RefinerSession
from hybrid.refiners.outcome import Assignment, Outcome
from hybrid.refiners.verdict import judge


def score(session: RefinerSession, assignment: Assignment) -> Outcome:
    """The draft as it is, judged by the refiner."""
    draft = assignment.draft
    logprobs = session.score(draft.token_ids).logprobs if draft.token_ids else ()
    verdict = judge(logprobs, assignment.params)
    return Outcome(verdict, draft.token_ids, len(draft.token_ids), draft.finish_reason)
