"""`score`: one pass attaches log-probabilities to the draft, which is the answer."""

from hybrid.refiners.assignment import Assignment, Outcome
from hybrid.refiners.verdict import judge


def score(assignment: Assignment) -> Outcome:
    """The draft as it is, judged by the scorer as far as an answer may go."""
    draft = assignment.draft
    failed = assignment.failed_checks(draft.text)
    return assignment.keep(judge(assignment.logprobs(draft), assignment.params, failed))
