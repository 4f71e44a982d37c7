"""Traces: a span a choice with its stages, continued from the client's, without anybody's text."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from tests.serve.conftest import FOX, ask

CHAT = "/v1/chat/completions"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return memory


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_a_choice_is_a_span_with_its_stages(
    exporter: InMemorySpanExporter, client: TestClient
) -> None:
    body = ask(max_tokens=30, hybrid={"refine": "verify", "budget": "9s"})
    client.post(CHAT, json=body)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans.keys() == {"chat scripted", "plan", "draft", "refine"}
    top = spans["chat scripted"]
    found = attributes(top)
    assert found["gen_ai.request.model"] == "hybrid"
    assert found["gen_ai.request.max_tokens"] == 30
    assert found["gen_ai.response.finish_reasons"] == ("stop",)
    assert found["gen_ai.usage.output_tokens"] == len(FOX) + 1
    assert found["hybrid.budget_s"] == 9.0
    for name in ("plan", "draft", "refine"):
        parent = spans[name].parent
        assert parent is not None and top.context is not None
        assert parent.span_id == top.context.span_id
    (canvas,) = spans["draft"].events
    assert dict(canvas.attributes or {})["hybrid.steps"] == 4
    assert FOX not in str([attributes(span) for span in spans.values()])


def test_a_trace_goes_on_from_the_clients(
    exporter: InMemorySpanExporter, client: TestClient
) -> None:
    number = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{number}-b7ad6b7169203331-01"}
    client.post(CHAT, json=ask(), headers=headers)
    traces = {f"{s.context.trace_id:032x}" for s in exporter.get_finished_spans() if s.context}
    assert traces == {number}


def test_a_request_that_fails_is_a_span_with_an_error(
    exporter: InMemorySpanExporter, client: TestClient
) -> None:
    client.post(CHAT, json=ask("nobody scripted this"))
    (span,) = exporter.get_finished_spans()
    assert not span.status.is_ok
    assert attributes(span)["error.type"] == "RequestError"
