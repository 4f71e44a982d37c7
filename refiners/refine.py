"""One entry to all refine modes, and what each of them promises.

`generate` needs no draft: the refiner writes alone. `none` never comes here.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hybrid.deadline import Deadline
from hybrid.errors import CapabilityError
from hybrid.protocols import Refiner, RefinerSession
from hybrid.refiners.cascade import cascade
from hybrid.refiners.edits import find_edits
from hybrid.refiners.outcome import Assignment, Outcome
from hybrid.refiners.score import score
from hybrid.refiners.verdict import judge
from hybrid.refiners.verify import verify
from hybrid.types import Draft, Guarantee, Refinement, RefineMode, RefineParams, Request, Verdict


@dataclass(frozen=True, slots=True)
class Mode:
    """A refine mode: what it promises, what it costs in words, and how it is done."""

    guarantee: Guarantee
    cost: str
    run: Callable[[RefinerSession, Assignment], Outcome]


MODES: Mapping[RefineMode, Mode] = {
    "score": Mode("draft", "one pass over prompt and draft; none with scorer self", score),
    "cascade": Mode("ar_or_draft", "as score, then AR decoding of what fails", cascade),
    "verify": Mode("lossless", "one pass over prompt and draft, then AR decoding", verify),
}


def refine(
    refiner: Refiner | None,
    request: Request,
    draft: Draft | None,
    params: RefineParams,
    max_new_tokens: int,
    deadline: Deadline,
    failed_checks: tuple[str, ...] = (),
) -> tuple[Verdict | None, Refinement | None]:
    """Judge and improve a draft under `params.mode`, or write the answer where there is none.

    `failed_checks` are those that the draft fails. A draft that is only judged, by its own scores,
    comes back without a refinement. A refinement that ends with "budget" is unfinished. Raises
    CapabilityError where a refiner is missed.
    """
    if draft is not None and params.mode == "score" and params.scorer == "self":
        return judge(draft.self_logprobs, params, failed_checks), None
    if refiner is None:
        raise CapabilityError(f"refine mode {params.mode}", "this policy", "it names no refiner")
    started = time.monotonic()
    session = refiner.open(request, max_new_tokens)
    limit = min(max_new_tokens, session.max_answer_tokens)
    if draft is None:
        token_ids, reason = session.continue_greedily((), limit, deadline)
        outcome, guarantee = Outcome(None, token_ids, 0, reason), MODES["verify"].guarantee
    else:
        assignment = Assignment(
            draft, params, limit, deadline, refiner.end_token_ids, failed_checks
        )
        mode = MODES[params.mode]
        outcome, guarantee = mode.run(session, assignment), mode.guarantee
    text = refiner.decode(outcome.token_ids)
    return outcome.verdict, Refinement(
        mode=params.mode,
        guarantee=guarantee,
        token_ids=outcome.token_ids,
        text=text,
        edits=find_edits(draft.text, text) if draft else (),
        accepted_tokens=outcome.accepted_tokens,
        forward_passes=session.forward_passes,
        finish_reason=outcome.finish_reason,
        seconds=time.monotonic() - started,
    )
