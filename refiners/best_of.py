"""`best_of`: several drafts of one prompt, made together; the one that scores best is the answer.

With `scorer: self` the drafter's own causal half chooses, and no second model is needed. The least
log-probability of a draft tells right from wrong better than the mean: one bad token is enough.
"""

import time
from collections.abc import Callable, Sequence

from hybrid.deadline import Deadline
from hybrid.protocols import Refiner
from hybrid.refiners.edits import find_edits
from hybrid.refiners.logprobs import read_logprobs
from hybrid.refiners.verdict import judge
from hybrid.types import Draft, Refinement, RefineParams, Request, Verdict

Failed = Callable[[Draft], tuple[str, ...]]


def best_of(
    refiner: Refiner | None,
    request: Request,
    drafts: Sequence[Draft],
    params: RefineParams,
    deadline: Deadline,
    failed_checks: Failed,
) -> tuple[Verdict, Refinement]:
    """The draft with the fewest failed checks, and of those the one that scores best.

    `failed_checks` names the checks that a draft fails. The first draft is the one that `edits`
    start from. When the time runs out, the drafts not yet scored by the refiner are passed over.
    """
    started, passes = time.monotonic(), 0
    verdicts: list[Verdict] = []
    for draft in drafts:
        deadline.raise_if_cancelled()
        if verdicts and deadline.expired and params.scorer == "refiner":
            break
        logprobs, more = read_logprobs(refiner, request, draft, params)
        passes += more
        verdicts.append(judge(logprobs, params, failed_checks(draft)))
    place = max(range(len(verdicts)), key=lambda at: _worth(verdicts[at]))
    chosen, first = drafts[place], drafts[0]
    return verdicts[place], Refinement(
        mode="best_of",
        guarantee="draft",
        token_ids=chosen.token_ids,
        text=chosen.text,
        edits=find_edits(first.text, chosen.text),
        accepted_tokens=len(chosen.token_ids),
        forward_passes=passes,
        finish_reason=chosen.finish_reason,
        seconds=time.monotonic() - started,
    )


def _worth(verdict: Verdict) -> tuple[int, bool, float]:
    """Fewer failed checks first, then anything at all, then the surest weakest token."""
    return -len(verdict.failed_checks), bool(verdict.logprobs), verdict.min_logprob
