"""Completions, responses and messages: read and written in their own shapes."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from hybrid.drafters.scripted import ScriptedDrafter
from tests.serve.conftest import ANSWERS, FOX, MakeClient

TURNS = [{"role": "user", "content": "say it"}]


def test_a_completion_answers_a_prompt(client: TestClient) -> None:
    body = client.post("/v1/completions", json={"prompt": "say it"}).json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == FOX
    assert body["choices"][0]["finish_reason"] == "stop"


def test_completions_answer_several_prompts_several_times(client: TestClient) -> None:
    sent = {"prompt": ["say it", "wrong"], "n": 2, "seed": 1}
    body = client.post("/v1/completions", json=sent).json()
    assert [choice["text"] for choice in body["choices"]] == [FOX, FOX, "right", "right"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["hybrid"]["seed"] for choice in body["choices"]] == [1, 2, 1, 2]
    assert body["usage"]["prompt_tokens"] == len("say it") + len("wrong")


def test_completions_have_log_probabilities_with_offsets(client: TestClient) -> None:
    sent = {"prompt": "wrong", "logprobs": 0, "hybrid": {"refine": "score"}}
    scored = client.post("/v1/completions", json=sent).json()["choices"][0]["logprobs"]
    assert scored["tokens"] == [*"right"]
    assert scored["text_offset"] == [0, 1, 2, 3, 4]
    assert len(scored["token_logprobs"]) == 5


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 3}, "logprobs"),
        ({"prompt": ["a", "b"], "suffix": "c"}, "suffix"),
        ({"prompt": "a <blank:3>", "suffix": "c"}, "prompt"),
    ],
)
def test_completions_refuse_by_name(client: TestClient, more: dict[str, Any], param: str) -> None:
    response = client.post("/v1/completions", json={"prompt": "say it", **more})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_response_answers_a_text_or_messages(client: TestClient) -> None:
    content = [{"type": "input_text", "text": "say it"}]
    message = {"type": "message", "role": "user", "content": content}
    for given in ("say it", [message]):
        body = client.post("/v1/responses", json={"input": given}).json()
        assert body["object"] == "response"
        assert body["status"] == "completed"
        assert body["output"][0]["content"][0]["text"] == FOX
        assert body["usage"]["output_tokens"] == len(FOX) + 1


def test_a_response_that_reached_its_limit_is_incomplete(client: TestClient) -> None:
    body = client.post("/v1/responses", json={"input": "say it", "max_output_tokens": 4}).json()
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.role"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format.type"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ],
)
def test_responses_refuse_by_name(client: TestClient, more: dict[str, Any], param: str) -> None:
    response = client.post("/v1/responses", json={"input": "say it", **more})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_responses_effort_is_a_budget(client: TestClient) -> None:
    sent = {"input": "say it", "reasoning": {"effort": "low"}}
    assert client.post("/v1/responses", json=sent).json()["hybrid"]["budget_ms"] == 1000


def test_a_message_is_answered_in_anthropics_shape(client: TestClient) -> None:
    sent = {"messages": TURNS, "max_tokens": 40, "system": [{"type": "text", "text": "brief"}]}
    body = client.post("/v1/messages", json=sent).json()
    assert (body["type"], body["role"]) == ("message", "assistant")
    assert body["content"] == [{"type": "text", "text": FOX}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"]["output_tokens"] == len(FOX) + 1


def test_a_message_says_what_ended_it(client: TestClient) -> None:
    sent = {"messages": TURNS, "max_tokens": 40, "stop_sequences": ["brown", "x"]}
    body = client.post("/v1/messages", json=sent).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "brown")
    assert body["content"][0]["text"] == "the quick "
    body = client.post("/v1/messages", json={"messages": TURNS, "max_tokens": 3}).json()
    assert body["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"tools": [{"name": "f"}]}, "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
        ({"top_k": 5}, "top_k"),
        ({"temperature": 1.5}, "temperature"),
    ],
)
def test_messages_refuse_by_name(client: TestClient, more: dict[str, Any], param: str) -> None:
    sent = {"messages": TURNS, "max_tokens": 40, **more}
    response = client.post("/v1/messages", json=sent)
    assert response.status_code == 400
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert param in response.json()["error"]["message"]


def test_tokens_are_counted_without_an_answer(make_client: MakeClient) -> None:
    client = make_client(drafter=ScriptedDrafter(ANSWERS, fails=False))
    sent = {"messages": [{"role": "user", "content": "what nobody scripted"}], "tools": [1]}
    response = client.post("/v1/messages/count_tokens", json=sent)
    assert response.json() == {"input_tokens": len("what nobody scripted")}


def test_an_explanation_runs_nothing(client: TestClient) -> None:
    sent = {"messages": [{"role": "user", "content": "what nobody scripted"}]}
    body = client.post("/v1/hybrid/explain", json=sent).json()
    assert body["plan"]["label"] == "4 steps"
    assert body["plan"]["rejected"] == []
    wrong = client.post("/v1/hybrid/explain", json={**sent, "stream": True})
    assert wrong.json()["error"]["param"] == "stream"


def test_blanks_are_filled_in_by_the_embedded_pair(server_url: str) -> None:
    import httpx2

    turns = [{"role": "user", "content": "code: a + b == 5; c + d == 3"}]
    sent = {"messages": turns, "template": "a = 1; b = <blank:1>; c = 1; d = 2"}
    body = httpx2.post(f"{server_url}/v1/hybrid/fill", json=sent).json()
    assert body["text"] == "a = 1; b = 4; c = 1; d = 2"
    sent["template"] = f"a = <blank:{10**6}>"
    response = httpx2.post(f"{server_url}/v1/hybrid/fill", json=sent)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "template"


def test_a_suffix_is_filled_up_to(server_url: str) -> None:
    import httpx2

    before, after = "code: a + b == 5; a = ", "; b = 4"
    for tokens in (1, 2):
        sent = {"prompt": before, "suffix": after, "max_tokens": tokens, "seed": 0}
        fill = {
            "messages": [{"role": "user", "content": before}],
            "template": f"{before}<blank:{tokens}>{after}",
            "seed": 0,
        }
        whole = httpx2.post(f"{server_url}/v1/hybrid/fill", json=fill).json()["text"]
        choice = httpx2.post(f"{server_url}/v1/completions", json=sent).json()["choices"][0]
        assert choice["text"]
        assert before + choice["text"] + after == whole


def test_the_last_resort_is_an_error_without_a_traceback(make_client: MakeClient) -> None:
    class Broken(ScriptedDrafter):
        def draft(self, jobs: Any) -> Any:
            if jobs[0].request.conversation[-1].content == "say it":
                raise ZeroDivisionError("secret detail")
            return super().draft(jobs)

    client = make_client(drafter=Broken(ANSWERS))
    for path, sent in (
        ("/v1/chat/completions", {"messages": TURNS}),
        ("/v1/messages", {"messages": TURNS, "max_tokens": 5}),
    ):
        response = client.post(path, json=sent)
        assert response.status_code == 500
        assert "secret" not in response.text and "Traceback" not in response.text
    several = client.post("/v1/chat/completions", json={"messages": TURNS, "n": 2})
    assert several.status_code == 500
    stream = client.post("/v1/chat/completions", json={"messages": TURNS, "stream": True})
    assert '"code": "internal_error"' in stream.text
    assert "secret" not in stream.text and "[DONE]" not in stream.text


def test_a_failing_backend_can_be_tried_again(make_client: MakeClient) -> None:
    class Failing(ScriptedDrafter):
        def draft(self, jobs: Any) -> Any:
            if jobs[0].request.conversation[-1].content == "say it":
                from hybrid.errors import BackendError

                raise BackendError("draft", "out of memory", retryable=True)
            return super().draft(jobs)

    response = make_client(drafter=Failing(ANSWERS)).post(
        "/v1/messages", json={"messages": TURNS, "max_tokens": 5}
    )
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["type"] == "overloaded_error"


def test_a_deadline_that_may_not_be_missed_is_a_timeout(make_client: MakeClient) -> None:
    policy = "version: 1\non_deadline: fail\ndefaults: {draft: {max_denoising_steps: 9}}\n"
    client = make_client(drafter=ScriptedDrafter(ANSWERS, 9, step_s=0.02), policy=policy)
    response = client.post(
        "/v1/chat/completions", json={"messages": TURNS, "hybrid": {"budget": "30ms"}}
    )
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert response.headers["x-should-retry"] == "false"
