"""`score`: one pass attaches log-probabilities to the draft, which is the answer."""

from hybrid.refiners.context import Outcome, RefineContext
from hybrid.refiners.verdict import evaluate_draft


def score(context: RefineContext) -> Outcome:
    """The draft as it is, judged by the scorer as far as an answer may go."""
    draft = context.draft
    failed = context.failed_checks(draft.text)
    return context.keep(evaluate_draft(context.logprobs(draft), context.params, failed))
