"""A stand-in for `Hybrid` that crystallises a scripted answer; it needs no model and no policy."""

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import pytest

from hybrid.types import (
    Canvas,
    Denoised,
    Draft,
    Drafted,
    DraftParams,
    Edit,
    Event,
    Finished,
    Patched,
    Plan,
    Planned,
    Prediction,
    Refinement,
    RefineParams,
    Request,
    Result,
    Signals,
    Timing,
    Usage,
    Verdict,
)


@dataclass
class ScriptedHybrid:
    """Answers every request with `canvases` (pieces of text each), `step_s` seconds a step."""

    canvases: list[list[str]]
    steps: int = 6
    step_s: float = 0.0
    edits: tuple[Edit, ...] = ()
    notes: tuple[str, ...] = ()
    error: Exception | None = None
    requests: list[Request] = field(default_factory=list)
    stopped: bool = False

    def load(self) -> "ScriptedHybrid":
        return self

    def generate(self, request: Request, /) -> Result:
        for event in self.stream(request):
            if isinstance(event, Finished):
                return event.result
        raise AssertionError

    def stream(self, request: Request, /) -> Generator[Event, None, None]:
        self.requests.append(request)
        try:
            yield from self._events(request)
        finally:
            self.stopped = True

    def _events(self, request: Request) -> Generator[Event, None, None]:
        started = time.monotonic()
        result = self._result(request)
        yield Planned(result.signals, result.plan)
        if self.error:
            raise self.error
        for index, pieces in enumerate(self.canvases):
            for step in range(1, self.steps + 1):
                time.sleep(self.step_s)
                yield self._denoised(index, step, pieces)
        assert result.draft
        yield Drafted(result.draft)
        if result.refinement and result.refinement.edits:
            yield Patched(result.refinement)
        yield Finished(self._result(request, time.monotonic() - started))

    def _denoised(self, canvas: int, step: int, pieces: list[str]) -> Denoised:
        draw = random.Random(canvas).random
        certain_at = [1 + draw() * (self.steps - 1) for _ in pieces]
        return Denoised(
            canvas=canvas,
            step=step,
            max_denoising_steps=16,
            pieces=tuple(pieces),
            accepted=tuple(at <= step for at in certain_at),
            entropy=tuple(max(0.0, 1.2 * (at - step)) for at in certain_at),
        )

    def _result(self, request: Request, total_s: float = 0.0) -> Result:
        draft = "".join(piece for pieces in self.canvases for piece in pieces)
        text = draft
        for edit in reversed(self.edits):
            text = text[: edit.start] + edit.new + text[edit.end :]
        plan = Plan(
            draft=DraftParams(max_denoising_steps=16),
            refine=RefineParams("verify"),
            max_new_tokens=64,
            budget_s=request.budget_s,
            predicted=Prediction(0.024, 0.038, 0.97),
            rule="task translate",
        )
        used = Canvas(self.steps, True, 0.001)
        return Result(
            text=text,
            token_ids=(5, 6, 1),
            finish_reason="stop",
            signals=Signals(35, "translate", "recognised", 12, 0),
            plan=plan,
            draft=Draft((5, 6, 1), draft, (0.0, 0.003), (used,) * len(self.canvases), "stop"),
            verdict=Verdict(True, "refiner", -0.01, float("-inf"), "above the threshold"),
            refinement=Refinement(
                "verify", "lossless", (5, 6, 1), text, self.edits, 2, 2, "stop", 0.014
            ),
            timing=Timing(total_s, 0.001, 0.011, 0.014, 0.024, 0.038, request.budget_s),
            usage=Usage(35, 3, self.steps, 2),
            seed=7,
            notes=self.notes,
        )


@pytest.fixture
def scripted() -> Callable[..., ScriptedHybrid]:
    """Makes a `Hybrid` that answers with one canvas of the given pieces."""

    def make(*pieces: str, **options: object) -> ScriptedHybrid:
        return ScriptedHybrid([list(pieces)], **options)  # type: ignore[arg-type]

    return make
