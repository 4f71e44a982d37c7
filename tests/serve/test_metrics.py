"""Numbers for Prometheus: what is counted, and that nobody's text is a label."""

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from hybrid.drafters.diffusion_gemma import MAX_BATCH_SIZE
from hybrid.serve.metrics import ROWS
from tests.serve.conftest import FOX, MakeClient, ask

CHAT = "/v1/chat/completions"


def numbers(client: TestClient) -> dict[tuple[str, ...], float]:
    """Samples by name and label values."""
    text = client.get("/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_answers_are_counted_by_endpoint_policy_and_outcome(client: TestClient) -> None:
    client.post(CHAT, json=ask(n=2))
    client.post(CHAT, json=ask(max_tokens=3))
    client.post(CHAT, json=ask("nobody scripted this"))
    found = numbers(client)
    assert found["hybrid_requests_total", "chat", "stop", "scripted"] == 2
    assert found["hybrid_requests_total", "chat", "length", "scripted"] == 1
    assert found["hybrid_requests_total", "chat", "invalid", "scripted"] == 1
    assert found["hybrid_denoising_steps_total", "scripted"] == 12
    assert found["hybrid_generation_tokens_total", "scripted"] == 2 * (len(FOX) + 1) + 3
    assert found["hybrid_budget_met_total", "scripted"] == 3
    assert found["hybrid_e2e_request_latency_seconds_count", "chat"] == 3
    assert found["hybrid_requests_running",] == found["hybrid_requests_waiting",] == 0


def test_refining_is_counted_by_what_came_of_it(client: TestClient) -> None:
    for steps in (2, 4):
        fields: dict[str, Any] = {"refine": "verify", "max_denoising_steps": steps}
        client.post(CHAT, json=ask(hybrid=fields))
    found = numbers(client)
    assert found["hybrid_refinements_total", "verify", "edited"] == 1
    assert found["hybrid_refinements_total", "verify", "kept"] == 1
    assert found["hybrid_refine_seconds_count", "verify"] == 2


def test_the_policy_in_force_is_named_with_its_digest(client: TestClient) -> None:
    sha = client.post(CHAT, json=ask()).json()["hybrid"]["policy_sha"]
    info = [labels for labels in numbers(client) if labels[0] == "hybrid_policy_info"]
    assert [labels[1:3] for labels in info] == [("scripted", sha)]


def test_no_text_is_in_the_numbers(make_client: MakeClient) -> None:
    client = make_client()
    client.post(CHAT, json=ask("say it", user="somebody"))
    text = client.get("/metrics").text
    assert "say it" not in text and FOX not in text and "somebody" not in text


def test_waiting_is_what_is_beyond_a_drafters_rows() -> None:
    assert ROWS == MAX_BATCH_SIZE


def test_the_dashboard_asks_for_numbers_that_exist(client: TestClient) -> None:
    file = Path(__file__).parents[2] / "deploy" / "grafana" / "hybrid.json"
    dashboard = json.loads(file.read_text("utf-8"))
    asked = {
        name.removesuffix("_bucket")
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"hybrid_\w+", target["expr"])
    }
    families = text_string_to_metric_families(client.get("/metrics").text)
    described = {
        family.name + ("_total" if family.type == "counter" else "") for family in families
    }
    assert asked <= described
    assert len(asked) >= 12
