"""Finished requests as a pipeline would report them, made up."""

from collections.abc import Callable

import pytest

from hybrid.types import (
    Canvas,
    Draft,
    DraftParams,
    DraftTiming,
    FinishReason,
    Plan,
    Prediction,
    Refinement,
    RefineMode,
    RefineParams,
    Result,
    Signals,
    Timing,
    Usage,
)


@pytest.fixture
def make_result() -> Callable[..., Result]:
    """Makes a Result: `cap` 0 means that nothing was drafted."""

    def make(
        total_s: float = 0.02,
        predicted: tuple[float, float] = (0.02, 0.03),
        task: str | None = "sums",
        mode: RefineMode = "none",
        cap: int = 8,
        steps: int = 4,
        passes: int = 0,
        tokens: int = 5,
        prompt_tokens: int = 20,
        reason: FinishReason = "stop",
        blank_tokens: int = 0,
        is_refined: bool = True,
        service: tuple[float, float] = (0.0, 0.0),
        draft_wait_s: float = 0.0,
        refine_wait_s: float = 0.0,
    ) -> Result:
        ids = (7,) * tokens
        canvas, timing = Canvas(steps, True, 0.0), DraftTiming(waiting_s=draft_wait_s)
        return Result(
            text="",
            token_ids=ids,
            finish_reason=reason,
            signals=Signals(prompt_tokens, task, "given", tokens, blank_tokens),
            plan=Plan(
                draft=DraftParams(max_denoising_steps=cap) if cap else None,
                refine=RefineParams(mode),
                max_new_tokens=64,
                budget_s=None,
                predicted=Prediction(*predicted, 1.0, *service),
                rule="",
            ),
            draft=Draft(ids, "", (), (canvas,), "stop", timing=timing) if cap else None,
            verdict=None,
            refinement=Refinement(mode, "lossless", ids, "", (), 0, passes, reason, 0.0)
            if mode != "none" and is_refined
            else None,
            timing=Timing(total_s, 0.0, 0.0, 0.0, *predicted, None, draft_wait_s + refine_wait_s),
            usage=Usage(prompt_tokens, tokens, steps if cap else 0, passes),
            seed=0,
        )

    return make
