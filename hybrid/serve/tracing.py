"""OpenTelemetry traces: a span a choice, with its plan, draft and refinement under it.

The names of attributes are written here and nowhere else: the GenAI conventions are not stable. A
trace is continued from the client's `traceparent`. Without the package nothing is traced; without
an exporter that the process has set up, spans go nowhere.
"""

import time
from collections.abc import Mapping

from hybrid.serve.call import Call, Choice, Head
from hybrid.serve.service import Observer
from hybrid.types import Result

try:
    from opentelemetry import trace
    from opentelemetry.propagate import extract
except ModuleNotFoundError:
    trace = None  # type: ignore[assignment]

OPERATION, PROVIDER = "gen_ai.operation.name", "gen_ai.provider.name"
REQUEST_MODEL, RESPONSE_MODEL = "gen_ai.request.model", "gen_ai.response.model"
MAX_TOKENS, STREAM = "gen_ai.request.max_tokens", "gen_ai.request.stream"
FINISH_REASONS, RESPONSE_ID = "gen_ai.response.finish_reasons", "gen_ai.response.id"
INPUT_TOKENS, OUTPUT_TOKENS = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
ERROR = "error.type"
PLAN, RULE, TASK = "hybrid.plan", "hybrid.rule", "hybrid.task"
STEPS, MODE, BUDGET = "hybrid.steps", "hybrid.refine.mode", "hybrid.budget_s"
IN_BUDGET, POLICY_SHA = "hybrid.within_budget", "hybrid.policy.sha"
CANVAS, CONVERGED = "hybrid.canvas", "hybrid.canvas.converged"


def tracer() -> Observer | None:
    """An observer that writes spans; None without opentelemetry."""
    return _observe if trace is not None else None


def _observe(call: Call, head: Head, choice: Choice | None, error: BaseException | None) -> None:
    """The spans of a choice that ended, at the times that its result names."""
    ended = time.time_ns()
    result = choice.result if choice is not None else None
    started = ended - (_ns(result.timing.total_s) if result else 0)
    source = trace.get_tracer("hybrid.serve")
    span = source.start_span(
        f"chat {head.model}",
        context=extract(dict(call.trace)),
        kind=trace.SpanKind.SERVER,
        start_time=started,
        attributes=_asked(call, head),
    )
    if result is not None:
        span.set_attributes(_answered(result))
        _stages(source, trace.set_span_in_context(span), result, started)
    elif error is not None:
        span.set_attribute(ERROR, type(error).__name__)
        span.set_status(trace.StatusCode.ERROR)
    span.end(ended)


def _asked(call: Call, head: Head) -> dict[str, str | int | bool]:
    attributes: dict[str, str | int | bool] = {
        OPERATION: "chat",
        PROVIDER: "hybrid",
        REQUEST_MODEL: call.model,
        RESPONSE_MODEL: head.model,
        RESPONSE_ID: head.decision_id,
        POLICY_SHA: head.policy_sha,
        STREAM: call.stream,
    }
    most = call.options.get("max_new_tokens")
    return attributes if most is None else {**attributes, MAX_TOKENS: most}


def _answered(result: Result) -> Mapping[str, str | int | float | bool | list[str]]:
    attributes: dict[str, str | int | float | bool | list[str]] = {
        FINISH_REASONS: [result.finish_reason],
        INPUT_TOKENS: result.usage.prompt_tokens,
        OUTPUT_TOKENS: result.usage.completion_tokens,
        PLAN: result.plan.label,
        RULE: result.plan.rule,
        STEPS: result.usage.denoising_steps,
        IN_BUDGET: result.timing.within_budget,
    }
    if result.signals.task is not None:
        attributes[TASK] = result.signals.task
    if result.timing.budget_s is not None:
        attributes[BUDGET] = result.timing.budget_s
    return attributes


def _stages(source: "trace.Tracer", inside: object, result: Result, started: int) -> None:
    """Planning, drafting with an event a canvas, and refining, one after the other."""
    timing, draft = result.timing, result.draft
    stages: list[tuple[str, float, dict[str, str | int]]] = [("plan", timing.plan_s, {})]
    if draft is not None:
        stages.append(("draft", timing.draft_s, {STEPS: draft.steps}))
    if result.plan.refine.mode != "none":
        stages.append(("refine", timing.refine_s, {MODE: result.plan.refine.mode}))
    for name, seconds, attributes in stages:
        ended = started + _ns(seconds)
        span = source.start_span(name, inside, start_time=started, attributes=attributes)  # type: ignore[arg-type]
        if name == "draft" and draft is not None:
            for number, canvas in enumerate(draft.canvases):
                facts = {CANVAS: number, STEPS: canvas.steps, CONVERGED: canvas.converged}
                span.add_event("canvas", facts, timestamp=ended)
        span.end(ended)
        started = ended


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
