"""Numbers for Prometheus. Labels are endpoint, policy, mode and outcome: never text, user or key.

Names follow vLLM's, with `hybrid_` for `vllm:`, so that dashboards map one to one.
"""

from collections.abc import Iterable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hybrid import __version__
from hybrid.errors import Cancelled
from hybrid.serve.call import Call, Choice, Head
from hybrid.serve.errors import api_error
from hybrid.serve.service import Service
from hybrid.types import Result

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60)
ROWS = 16  # a drafter's `MAX_BATCH_SIZE`, whose module would import torch
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2, 3, 5, 10)


class Metrics:
    """The numbers of one application; an observer of its service."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Now(service))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"hybrid_{name}", text, labels, registry=self._registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> Histogram:
            return Histogram(
                f"hybrid_{name}", text, labels, buckets=buckets, registry=self._registry
            )

        self._requests = counter(
            "requests",
            "Choices that ended, by what became of them.",
            "endpoint",
            "policy",
            "outcome",
        )
        self._latency = histogram(
            "e2e_request_latency_seconds", "From a choice's start to its end.", "endpoint"
        )
        self._first = histogram("time_to_first_block_seconds", "Until the draft is complete.")
        self._queue = histogram("queue_time_seconds", "Waiting for a row, before drafting.")
        self._draft = histogram("draft_seconds", "Drafting, with waiting.")
        self._refine = histogram("refine_seconds", "Judging and refining.", "mode")
        self._steps = counter("denoising_steps", "Denoising steps.", "policy")
        self._committed = counter("committed_tokens", "Tokens of drafts.", "policy")
        self._prompt = counter("prompt_tokens", "Tokens read.", "policy")
        self._generated = counter("generation_tokens", "Tokens of answers.", "policy")
        self._refinements = counter("refinements", "Refining, by what came of it", "mode", "result")
        self._fallbacks = counter("fallbacks", "Drafts whose refining failed.", "mode")
        self._met = counter("budget_met", "Choices within their budgets.", "policy")
        self._missed = counter("budget_missed", "Choices after their budgets.", "policy")
        self._error = histogram(
            "prediction_ratio", "Time taken over time predicted (p50).", "mode", buckets=_RATIOS
        )

    def render(self) -> tuple[bytes, str]:
        """All numbers as text, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def observe(
        self, call: Call, head: Head, choice: Choice | None, error: BaseException | None
    ) -> None:
        """Count a choice that ended."""
        self._requests.labels(call.endpoint, head.model, _outcome(choice, error)).inc()
        if choice is not None:
            self._observe_result(call, head, choice.result)

    def _observe_result(self, call: Call, head: Head, result: Result) -> None:
        timing, usage, draft = result.timing, result.usage, result.draft
        policy, mode = head.model, result.plan.refine.mode
        self._latency.labels(call.endpoint).observe(timing.total_s)
        self._steps.labels(policy).inc(usage.denoising_steps)
        self._prompt.labels(policy).inc(usage.prompt_tokens)
        self._generated.labels(policy).inc(usage.completion_tokens)
        self._error.labels(mode).observe(timing.total_s / timing.predicted_p50_s)
        if draft is not None:
            worked = draft.timing.prefill_s + draft.timing.denoise_s + draft.timing.commit_s
            self._first.observe(timing.plan_s + timing.draft_s)
            self._draft.observe(timing.draft_s)
            self._queue.observe(max(0.0, timing.draft_s - worked))
            self._committed.labels(policy).inc(len(draft.token_ids))
        if mode != "none":
            self._refine.labels(mode).observe(timing.refine_s)
            outcome = _refined(result)
            self._refinements.labels(mode, outcome).inc()
            if outcome == "failed":
                self._fallbacks.labels(mode).inc()
        if timing.budget_s is not None:
            (self._met if timing.within_budget else self._missed).labels(policy).inc()


def _outcome(choice: Choice | None, error: BaseException | None) -> str:
    if choice is not None:
        return choice.result.finish_reason
    if isinstance(error, Cancelled) or not isinstance(error, Exception):
        return "cancelled"
    status = api_error(error).status
    return {408: "deadline", 429: "refused"}.get(status, "invalid" if status < 500 else "error")


def _refined(result: Result) -> str:
    if result.verdict is None and result.refinement is None:
        return "failed"
    if result.refinement is not None and result.refinement.edits:
        return "edited"
    return "written" if result.draft is None else "kept"


class _Now(Collector):
    """What is true at the moment of asking."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """See prometheus-client. A drafter works on 16 rows; whoever is beyond them waits."""
        service = self._service
        waiting = max(0, service.in_flight - ROWS * max(1, service.workers))
        running = service.in_flight - waiting
        yield GaugeMetricFamily("hybrid_requests_running", "Being answered.", running)
        yield GaugeMetricFamily("hybrid_requests_waiting", "Waiting for a row.", waiting)
        info = GaugeMetricFamily(
            "hybrid_policy_info", "The policies in force.", labels=["policy", "sha", "version"]
        )
        for name in service.policies:
            info.add_metric([name, service.policies[name].current()[1], __version__], 1)
        yield info
