"""A parameter is honoured, refused with its name, or listed as ignored: never just dropped."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from hybrid import Hybrid
from hybrid.drafters.scripted import ScriptedDrafter
from tests.serve.conftest import ANSWERS, FOX, MakeClient, ask

CHAT = "/v1/chat/completions"


def test_an_answer_has_openais_shape_and_says_how_it_came_about(client: TestClient) -> None:
    response = client.post(CHAT, json=ask(seed=5))
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == "scripted"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": FOX, "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert body["usage"]["total_tokens"] == len("say it") + len(FOX) + 1
    assert body["usage"]["completion_tokens_details"]["denoising_steps"] == 4
    assert body["hybrid"]["plan"]["label"] == "4 steps"
    assert body["hybrid"]["seed"] == 5
    assert "rejected" not in body["hybrid"]["plan"]
    assert response.headers["x-hybrid-decision-id"] == body["hybrid"]["decision_id"]
    assert body["system_fingerprint"] == f"policy-{body['hybrid']['policy_sha']}"
    assert "x-hybrid-ignored" not in response.headers


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_token_limit_is_exact(client: TestClient, name: str) -> None:
    body = client.post(CHAT, json={**ask(), name: 7}).json()
    assert body["choices"][0]["message"]["content"] == FOX[:7]
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 7


def test_two_token_limits_must_agree(client: TestClient) -> None:
    assert client.post(CHAT, json=ask(max_tokens=7, max_completion_tokens=7)).status_code == 200
    response = client.post(CHAT, json=ask(max_tokens=7, max_completion_tokens=8))
    assert response.json()["error"]["param"] == "max_tokens"


def test_stop_strings_end_the_text_before_them(client: TestClient) -> None:
    for stop in ("brown", ["fox", "brown"]):
        choice = client.post(CHAT, json=ask(stop=stop)).json()["choices"][0]
        assert choice["message"]["content"] == "the quick "
        assert choice["finish_reason"] == "stop"


def test_several_choices_have_seeds_that_follow_each_other(client: TestClient) -> None:
    body = client.post(CHAT, json=ask(n=3, seed=7)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [choice["hybrid"]["seed"] for choice in body["choices"]] == [7, 8, 9]
    assert body["usage"]["prompt_tokens"] == len("say it")
    assert body["usage"]["completion_tokens"] == 3 * (len(FOX) + 1)


def test_a_negative_seed_is_a_seed(client: TestClient) -> None:
    assert client.post(CHAT, json=ask(seed=-1)).json()["hybrid"]["seed"] == 2**63 - 1


def test_temperature_reaches_the_plan(client: TestClient) -> None:
    plan = client.post(CHAT, json=ask(temperature=0.5)).json()["hybrid"]["plan"]
    assert (plan["draft"]["t_min"], plan["draft"]["t_max"]) == (0.2, 0.4)
    assert plan["refine"]["temperature"] == 0.5


def test_reasoning_effort_is_the_budget_that_the_policy_gives_it(client: TestClient) -> None:
    def budget(**more: Any) -> float:
        found: float = client.post(CHAT, json=ask(**more)).json()["hybrid"]["budget_ms"]
        return found

    assert budget() == 30_000
    assert budget(reasoning_effort="low") == 1000
    assert budget(reasoning_effort="high") == 9000
    assert budget(reasoning_effort="medium") == 30_000
    assert budget(reasoning_effort="low", hybrid={"budget": "2s"}) == 2000


def test_headers_set_budget_and_task_and_the_object_comes_first(client: TestClient) -> None:
    headers = {"x-hybrid-budget": "3s", "x-hybrid-task": "fast"}
    said = client.post(CHAT, json=ask(), headers=headers).json()["hybrid"]
    assert (said["budget_ms"], said["plan"]["label"]) == (3000, "2 steps")
    body = ask(hybrid={"budget": "4s"})
    assert client.post(CHAT, json=body, headers=headers).json()["hybrid"]["budget_ms"] == 4000


@pytest.mark.parametrize(
    ("timeout", "budget_ms"), [("5", 5000), ("600", 30_000), ("NaN", 30_000), ("{}", 30_000)]
)
def test_a_clients_timeout_bounds_the_budget(
    client: TestClient, timeout: str, budget_ms: float
) -> None:
    response = client.post(CHAT, json=ask(), headers={"x-stainless-read-timeout": timeout})
    assert response.json()["hybrid"]["budget_ms"] == budget_ms


def test_log_probabilities_where_the_plan_scored_the_answer(client: TestClient) -> None:
    body = ask(logprobs=True, hybrid={"refine": "score"}, stop="quick")
    content = client.post(CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in content) == "the "
    assert {one["logprob"] for one in content} == {-0.1}
    response = client.post(CHAT, json=ask(logprobs=True))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logprobs"
    assert "hybrid.refine: score" in response.json()["error"]["message"]


def test_content_may_be_text_parts_and_developer_is_system(make_client: MakeClient) -> None:
    heard = []

    class Listening(ScriptedDrafter):
        def count_prompt_tokens(self, request: Any) -> int:
            heard.append([(m.role, m.content) for m in request.conversation])
            return 1

    parts = [{"type": "text", "text": "say "}, {"type": "text", "text": "it"}]
    turns = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    client = make_client(drafter=Listening(ANSWERS))
    assert client.post(CHAT, json={"messages": turns}).status_code == 200
    assert heard[-1] == [("system", "be brief"), ("user", "say it")]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "auto"),
        ("response_format", {"type": "json_object"}),
        ("top_p", 0.9),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -0.5),
        ("logit_bias", {"5": 1}),
        ("top_logprobs", 3),
        ("audio", {"voice": "x"}),
        ("modalities", ["audio"]),
        ("n", 17),
        ("n", 0),
        ("n", 1000),
        ("temperature", -1),
        ("temperature", "hot"),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("seed", "x"),
        ("stop", ["x"] * 100),
        ("stop", [""]),
        ("stream", 1),
        ("reasoning_effort", "extreme"),
        ("model", 7),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: TestClient, parameter: str, value: Any
) -> None:
    response = client.post(CHAT, json=ask(**{parameter: value}))
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"].split(".")[0] == parameter
    assert parameter in error["message"]


def test_what_changes_nothing_is_listed(client: TestClient) -> None:
    more: dict[str, Any] = {
        "user": "me",
        "store": True,
        "verbosity": "low",
        "service_tier": None,
        "tools": [],
    }
    response = client.post(CHAT, json=ask(**more))
    assert response.status_code == 200
    assert response.headers["x-hybrid-ignored"] == "user, store, verbosity"


def test_names_that_a_header_cannot_hold_are_counted(client: TestClient) -> None:
    more: dict[str, Any] = {"user": 1, "ü\r\nx: y": 2, **{f"field{n}": n for n in range(40)}}
    ignored = client.post(CHAT, json=ask(**more)).headers["x-hybrid-ignored"]
    assert ignored.startswith("user, field0, field1")
    assert ignored.endswith("and 10 more")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"budgt": "1s"}, "hybrid.budgt"),
        ({"budget": "1"}, "hybrid.budget"),
        ({"budget": 300}, "hybrid.budget"),
        ({"budget": "0s"}, "hybrid.budget"),
        ({"budget": "-1s"}, "hybrid.budget"),
        ({"budget": "soon"}, "hybrid.budget"),
        ({"task": "unknown"}, "hybrid.task"),
        ({"refine": "polish"}, "hybrid.refine"),
        ({"max_denoising_steps": 0}, "hybrid.max_denoising_steps"),
        ({"infill": "no blanks"}, "hybrid.infill"),
        ({"stream_drafts": 1}, "hybrid.stream_drafts"),
        ({"checks": [{"shape": "round"}]}, "hybrid.checks"),
        ({"checks": [{"contains": 5}]}, "hybrid.checks.contains"),
        ("fast", "hybrid"),
    ],
)
def test_our_own_object_is_strict(client: TestClient, fields: Any, param: str) -> None:
    response = client.post(CHAT, json=ask(hybrid=fields))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_a_wrong_budget_header_is_named(client: TestClient) -> None:
    response = client.post(CHAT, json=ask(), headers={"x-hybrid-budget": "1 fortnight"})
    assert response.json()["error"]["param"] == "x-hybrid-budget"


def test_checks_are_examined_and_reported(client: TestClient) -> None:
    checks = [{"contains": "fox"}, {"contains": "dog"}, {"length": {"most": 30}}]
    said = client.post(CHAT, json=ask(hybrid={"checks": checks})).json()["hybrid"]["checks"]
    assert [check["problem"] for check in said] == [None, "'dog' is missing", None]


def test_explain_lists_what_was_rejected(client: TestClient) -> None:
    body = ask(hybrid={"explain": True})
    assert client.post(CHAT, json=body).json()["hybrid"]["plan"]["rejected"] == []
    refined = ask(hybrid={"refine": "verify", "explain": True})
    assert client.post(CHAT, json=refined).json()["hybrid"]["refinement"]["mode"] == "verify"


def test_an_unknown_model_is_not_found(client: TestClient) -> None:
    response = client.post(CHAT, json=ask(model="scriptd"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "did you mean 'scripted'?" in response.json()["error"]["message"]


def test_text_parts_of_other_kinds_are_refused(client: TestClient) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    error = client.post(CHAT, json=body).json()["error"]
    assert error["param"] == "messages.0.content"
    assert "'image_url' cannot be read" in error["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "say it",
        [{"role": "user"}],
        [{"role": "robot", "content": "x"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": ""}],
        [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
        [{"role": "user", "content": "x"}] * 2000,
        [["user", "x"]],
    ],
)
def test_conversations_that_cannot_be_answered(client: TestClient, messages: Any) -> None:
    response = client.post(CHAT, json={"messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages")


def test_a_thousand_messages_are_a_conversation(client: TestClient) -> None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}] * 500
    body = {"messages": [*turns, {"role": "user", "content": "say it"}]}
    assert client.post(CHAT, json=body).status_code == 200


def test_the_answer_is_what_python_gives(make_client: MakeClient, tmp_path: Any) -> None:
    with Hybrid.from_policy("fast") as hybrid:
        prompt = "list 5 fruits, not apple or grape"
        expected = hybrid.generate(prompt, seed=3, max_denoising_steps=6)
        from hybrid.serve import create_app

        with TestClient(create_app(hybrid)) as client:
            more = {"seed": 3, "hybrid": {"max_denoising_steps": 6}}
            body = client.post(CHAT, json=ask(prompt, **more)).json()
    assert body["choices"][0]["message"]["content"] == expected.text
    assert body["usage"]["completion_tokens"] == len(expected.token_ids)
