"""hybrid's own fields: the `hybrid` object of requests and answers, and the `x-hybrid-` headers.

The object is strict: a field that it does not know is an error, so that a typing mistake is not
taken for a wish that was honoured.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hybrid.deadline import parse_duration
from hybrid.requests import Options
from hybrid.serialization import finite, record
from hybrid.serve.call import Choice, DraftFrame, Extension
from hybrid.serve.fields import without_nulls
from hybrid.types import MAX_STEPS, Denoised, Edit, RefineMode, Result


class HybridFields(BaseModel):
    """What a request may say to hybrid beyond its dialect."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: str | None = Field(default=None, description="The policy's task to treat it as.")
    budget: str | None = Field(
        default=None, description="Time to answer in, with a unit: 500ms, 2s."
    )
    max_denoising_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    refine: RefineMode | None = Field(default=None, description="What the refiner does.")
    infill: str | None = Field(default=None, description="A template with blanks, <blank:N>.")
    checks: list[dict[str, Any]] = Field(
        default=[],
        max_length=16,
        description="What the answer must satisfy: contains, regex, json, length, repetition.",
    )
    stream_drafts: bool = Field(default=False, description="Send denoising steps as they happen.")
    stream_patches: bool = Field(default=False, description="Send the draft, then the edits.")
    explain: bool = Field(default=False, description="List the plans that were rejected, and why.")

    def options(self) -> Options:
        """As options of a request."""
        options = Options(
            task=self.task,
            budget=self.budget,
            max_denoising_steps=self.max_denoising_steps,
            refine=self.refine,
            infill=self.infill,
        )
        if self.checks:
            options["checks"] = self.checks
        return without_nulls(options)

    @property
    def extension(self) -> Extension:
        """What it says of the answer's form."""
        return Extension(self.stream_drafts, self.stream_patches, self.explain)


def merge(
    options: Options, fields: HybridFields | None, effort: str | None, headers: Mapping[str, str]
) -> Options:
    """A dialect's options with those of the `hybrid` object and of the headers, the object first.

    `x-stainless-read-timeout` (seconds, sent by OpenAI's and Anthropic's clients) bounds the budget
    from above. Raises RequestError.
    """
    merged = Options(**options)
    if effort is not None:
        merged["effort"] = effort
    if (budget := headers.get("x-hybrid-budget")) is not None:
        parse_duration(budget, "x-hybrid-budget")
        merged["budget"] = budget
    if (task := headers.get("x-hybrid-task")) is not None:
        merged["task"] = task
    if (timeout := _seconds(headers.get("x-stainless-read-timeout"))) is not None:
        merged["timeout"] = f"{timeout:.6f}s"
    return Options(**{**merged, **(fields.options() if fields else {})})


def _seconds(header: str | None) -> float | None:
    """A timeout, where the header holds one: clients also send words and structures."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 1e-3 <= seconds < 1e6 else None


class HybridReport(BaseModel):
    """How an answer came about; durations in the names' units."""

    decision_id: str
    policy: str
    policy_sha: str
    plan: dict[str, Any]
    steps: int
    refiner_passes: int
    finish_reason: Literal["stop", "length", "budget"]
    seed: int
    within_budget: bool
    budget_ms: float | None
    predicted_ms: float
    actual_ms: float
    verdict: dict[str, Any] | None
    refinement: dict[str, Any] | None
    edits: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    notes: list[str]


def report(choice: Choice, model: str, sha: str, decision_id: str, explain: bool) -> dict[str, Any]:
    """The `hybrid` object of an answer, of one of its choices."""
    result, timing = choice.result, choice.result.timing
    refinement = result.refinement
    values = {
        "decision_id": decision_id,
        "policy": model,
        "policy_sha": sha,
        "plan": _plan(result, explain),
        "steps": result.usage.denoising_steps,
        "refiner_passes": result.usage.refiner_passes,
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "within_budget": timing.within_budget,
        "budget_ms": None if timing.budget_s is None else milliseconds(timing.budget_s),
        "predicted_ms": milliseconds(timing.predicted_p50_s),
        "actual_ms": milliseconds(timing.total_s),
        "verdict": None
        if result.verdict is None
        else {
            "accepted": result.verdict.accepted,
            "scorer": result.verdict.scorer,
            "mean_logprob": result.verdict.mean_logprob,
            "min_logprob": result.verdict.min_logprob,
            "reason": result.verdict.reason,
        },
        "refinement": None
        if refinement is None
        else {
            "mode": refinement.mode,
            "guarantee": refinement.guarantee,
            "accepted_tokens": refinement.accepted_tokens,
            "forward_passes": refinement.forward_passes,
            "ms": milliseconds(refinement.seconds),
        },
        "edits": edits(refinement.edits if refinement else ()),
        "checks": [{"name": c.name, "problem": c.problem} for c in result.checks],
        "notes": list(result.notes),
    }
    return dict(finite(values))


def _plan(result: Result, explain: bool) -> dict[str, Any]:
    plan = record(result.plan)
    if not explain:
        del plan["rejected"]
    return plan


def draft_frame(frame: DraftFrame) -> dict[str, Any]:
    """A denoising step as a frame of a stream; `accepted` are 1 where a token has settled."""
    shown = step(frame.step)
    earlier = {"earlier": [step(one) for one in frame.earlier]} if frame.earlier else {}
    return {"type": "draft", "index": frame.index, **shown, **earlier}


def step(event: Denoised) -> dict[str, Any]:
    """One denoising step as plain values."""
    accepted = [int(one) for one in event.accepted]
    return {
        "block": event.canvas,
        "step": event.step,
        "of": event.max_denoising_steps,
        "text": event.text,
        "settled": round(sum(accepted) / max(1, len(accepted)), 3),
        "pieces": list(event.pieces),
        "accepted": accepted,
    }


def edits(found: Sequence[Edit]) -> list[dict[str, Any]]:
    """Edits as plain values: characters [start, end) of the draft's text."""
    return [
        {"start": e.start, "end": e.end, "old": e.old, "new": e.new, "why": e.why} for e in found
    ]


def milliseconds(seconds: float) -> float:
    """Rounded to a microsecond."""
    return round(seconds * 1e3, 3)
