"""One entry to all refine modes, and the refiner alone."""

import time
from collections.abc import Callable, Mapping

from hybrid.deadline import Deadline
from hybrid.errors import CapabilityError
from hybrid.modes import MODES
from hybrid.protocols import Refiner, SamplingParams
from hybrid.refiners.best_of import best_of
from hybrid.refiners.cascade import cascade
from hybrid.refiners.context import Outcome, RefineContext
from hybrid.refiners.edits import find_edits
from hybrid.refiners.guide import guide
from hybrid.refiners.repair import repair
from hybrid.refiners.rewrite import rewrite
from hybrid.refiners.score import score
from hybrid.refiners.verify import verify
from hybrid.refiners.written_text import OnTokens, reporting
from hybrid.types import Refinement, RefineMode, Request, Verdict

RUN: Mapping[RefineMode, Callable[[RefineContext], Outcome]] = {
    "score": score,
    "best_of": best_of,
    "repair": repair,
    "guide": guide,
    "cascade": cascade,
    "verify": verify,
    "rewrite": rewrite,
}


def refine(context: RefineContext) -> tuple[Verdict | None, Refinement]:
    """Judge and improve a draft under its `params.mode`, one of `RUN`.

    A refinement that ends with "budget" is unfinished. Raises CapabilityError where a refiner is
    missed, and whatever the refiner or the drafter raises.
    """
    started = time.monotonic()
    mode, draft = context.params.mode, context.draft
    outcome = RUN[mode](context)
    return outcome.verdict, Refinement(
        mode=mode,
        guarantee=MODES[mode].guarantee,
        token_ids=outcome.token_ids,
        text=outcome.text,
        edits=find_edits(draft.text, outcome.text, outcome.why),
        accepted_tokens=outcome.accepted_tokens,
        forward_passes=context.forward_passes + outcome.more_passes,
        finish_reason=outcome.finish_reason,
        seconds=time.monotonic() - started,
        denoising_steps=outcome.denoising_steps,
        thought=context.thought(outcome.token_ids),
    )


def write_alone(
    refiner: Refiner | None,
    request: Request,
    max_new_tokens: int,
    deadline: Deadline,
    sampling: SamplingParams | None = None,
    mode: RefineMode = "generate",
    on_tokens: OnTokens | None = None,
) -> Refinement:
    """What the refiner writes without a draft; raises CapabilityError if there is no refiner."""
    if refiner is None:
        raise CapabilityError(f"refine mode {mode}", "this policy", "it names no refiner")
    started = time.monotonic()
    session = refiner.open(request, max_new_tokens, deadline, sampling)
    limit = min(max_new_tokens, session.max_answer_tokens)
    token_ids, reason = session.write((), limit, reporting(on_tokens))
    return Refinement(
        mode=mode,
        guarantee=MODES["generate"].guarantee,
        token_ids=token_ids,
        text=refiner.decode(token_ids),
        edits=(),
        accepted_tokens=0,
        forward_passes=session.forward_passes,
        finish_reason=reason,
        seconds=time.monotonic() - started,
        thought=refiner.decode_thought(token_ids),
    )
