"""Log-probabilities of a draft's tokens, by whoever scores: the refiner, or the drafter itself."""

from hybrid.errors import CapabilityError
from hybrid.protocols import Refiner
from hybrid.types import Draft, RefineParams, Request


def read_logprobs(
    refiner: Refiner | None, request: Request, draft: Draft, params: RefineParams
) -> tuple[tuple[float, ...], int]:
    """One a token, and the refiner's passes that it took; raises CapabilityError without one."""
    if params.scorer == "self":
        return draft.self_logprobs, 0
    if refiner is None:
        raise CapabilityError("scorer: refiner", "this policy", "it names no refiner")
    session = refiner.open(request, max(1, len(draft.token_ids)))
    scores = session.score(draft.token_ids[: session.max_answer_tokens])
    return scores.logprobs, session.forward_passes
