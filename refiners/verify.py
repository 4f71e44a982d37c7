"""`verify`: keep what the refiner would have written itself, then let it go on.

The draft is read in one pass. Its longest prefix of the refiner's own choices stays; the rest is
the refiner's. The answer is token for token what the refiner alone would have written, greedily or
with the same seed, and each accepted token has saved a pass.
"""

from collections.abc import Sequence, Set

from hybrid.refiners.context import Outcome, RefineContext, continue_from
from hybrid.types import Verdict


def verify(context: RefineContext) -> Outcome:
    """The refiner's own answer, with the draft as speculation."""
    token_ids, ends = context.token_ids, context.need_refiner().end_token_ids
    scores = context.read(token_ids)
    agreed = count_agreed(token_ids, scores.choices, ends)
    mean = sum(scores.logprobs) / len(token_ids) if token_ids else 0.0
    verdict = Verdict(
        accepted=agreed == len(token_ids) > 0,
        scorer="refiner",
        mean_logprob=mean,
        min_logprob=min(scores.logprobs, default=0.0),
        reason=f"the refiner agrees with {agreed} of {len(token_ids)} tokens",
        logprobs=scores.logprobs,
        failed_checks=context.failed_checks(context.draft.text),
    )
    return continue_from(context, agreed, scores.choices[agreed], verdict)


def count_agreed(token_ids: Sequence[int], choices: Sequence[int], end_token_ids: Set[int]) -> int:
    """The length of the longest prefix that the refiner would have written, its end included."""
    for count, (token, choice) in enumerate(zip(token_ids, choices, strict=False)):
        if token != choice:
            return count
        if token in end_token_ids:
            return count + 1
    return len(token_ids)
