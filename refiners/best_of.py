"""`best_of`: several drafts of one prompt, made together; the one that scores best is the answer.

With `scorer: self` the drafter's own causal half chooses, and no second model is needed. The least
log-probability of a draft tells right from wrong better than the mean: one bad token is enough.
"""

import math

from hybrid.refiners.context import Outcome, RefineContext
from hybrid.refiners.verdict import evaluate_draft
from hybrid.types import Verdict


def best_of(context: RefineContext) -> Outcome:
    """The draft with the fewest failed checks, and of those the one that scores best.

    Of equals, the first. When the time runs out, the drafts that the refiner has not scored yet are
    passed over.
    """
    params, deadline = context.params, context.deadline
    drafts = [context.draft, *context.more_drafts]
    verdicts: list[Verdict] = []
    for draft in drafts:
        deadline.raise_if_cancelled()
        if verdicts and deadline.expired and params.scorer == "refiner":
            break
        failed = context.failed_checks(draft.text)
        verdicts.append(evaluate_draft(context.logprobs(draft), params, failed))
    place = max(range(len(verdicts)), key=lambda at: _worth(verdicts[at]))
    chosen, verdict = drafts[place], verdicts[place]
    kept, why = len(chosen.token_ids), f"draft {place + 1} of {len(drafts)}: {verdict.reason}"
    return Outcome(verdict, chosen.token_ids, chosen.text, kept, chosen.finish_reason, why)


def _worth(verdict: Verdict) -> tuple[int, bool, float]:
    """Fewer failed checks first, then anything at all, then the surest weakest token."""
    least = -math.inf if math.isnan(verdict.min_logprob) else verdict.min_logprob
    return -len(verdict.failed_checks), bool(verdict.logprobs), least
