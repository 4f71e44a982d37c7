"""`score`: one pass attaches the refiner's log-probabilities; the draft is the answer."""

from hybrid.protocols import RefinerSession
from hybrid.refiners.outcome import Assignment, Outcome
from hybrid.refiners.verdict import judge


def score(session: RefinerSession, assignment: Assignment) -> Outcome:
    """The draft as it is, judged by the refiner as far as an answer may go."""
    draft, token_ids = assignment.draft, assignment.token_ids
    logprobs = session.score(token_ids).logprobs if token_ids else ()
    verdict = judge(logprobs, assignment.params, assignment.failed_checks)
    return Outcome(verdict, draft.token_ids, len(draft.token_ids), draft.finish_reason)
