"""Streams: what is sent, in which order, how often, and what a slow client costs."""

import json
from typing import Any

import anyio
import pytest
from starlette.testclient import TestClient

from hybrid.drafters.scripted import ScriptedDrafter
from hybrid.serve.call import Delta, DraftFrame, Part
from hybrid.serve.sse import Outbox
from hybrid.types import Denoised
from tests.serve.conftest import ANSWERS, FOX, MakeClient, ask

CHAT = "/v1/chat/completions"


def events(text: str) -> list[dict[str, Any]]:
    """The data of a stream, without `[DONE]`."""
    found = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(data) for data in found if data != "[DONE]"]


def stream(client: TestClient, path: str = CHAT, **body: Any) -> list[dict[str, Any]]:
    """The events of an answer."""
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events(response.text)


def test_a_chat_stream_is_made_of_chunks_with_a_choice_each(client: TestClient) -> None:
    chunks = stream(client, **ask())
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == FOX
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [*[None] * (len(chunks) - 1), "stop"]
    assert not any(chunk.get("hybrid", {}).get("type") == "draft" for chunk in chunks)


def test_a_stream_ends_with_done(client: TestClient) -> None:
    assert client.post(CHAT, json=ask(stream=True)).text.endswith("data: [DONE]\n\n")


def test_usage_comes_last_and_only_when_asked_for(client: TestClient) -> None:
    *others, last = stream(client, **ask(stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(FOX) + 1
    assert all(chunk["usage"] is None for chunk in others)
    assert all("usage" not in chunk for chunk in stream(client, **ask()))


def test_the_last_choice_chunk_says_how_the_answer_came_about(client: TestClient) -> None:
    *_, last = stream(client, **ask())
    assert last["hybrid"]["type"] == "result"
    assert last["hybrid"]["plan"]["label"] == "4 steps"


def test_drafts_are_legal_chunks_with_an_empty_delta(make_client: MakeClient) -> None:
    client = make_client(drafter=ScriptedDrafter(ANSWERS, 4, step_s=0.1))
    chunks = stream(client, **ask(hybrid={"stream_drafts": True}))
    drafts = [chunk for chunk in chunks if chunk.get("hybrid", {}).get("type") == "draft"]
    assert [draft["hybrid"]["step"] for draft in drafts] == [1, 2, 3, 4]
    assert {json.dumps(draft["choices"][0]["delta"]) for draft in drafts} == {"{}"}
    first = drafts[0]["hybrid"]
    assert (first["block"], first["of"]) == (0, 4)
    assert first["text"] == "".join(first["pieces"]) == FOX[:5] + "?" * 14
    assert first["accepted"] == [1] * 5 + [0] * 14
    assert first["settled"] == pytest.approx(5 / 19, abs=1e-3)


def test_no_step_is_lost_when_frames_are_fewer_than_steps(make_client: MakeClient) -> None:
    client = make_client(drafter=ScriptedDrafter(ANSWERS, 20, step_s=0.002))
    body = ask(hybrid={"stream_drafts": True, "max_denoising_steps": 20})
    frames = [c["hybrid"] for c in stream(client, **body) if c.get("hybrid", {}).get("pieces")]
    assert len(frames) < 10
    steps = [step["step"] for frame in frames for step in (*frame.get("earlier", []), frame)]
    assert steps == [*range(1, 21)]


def test_patches_come_after_the_draft_and_make_the_answer_of_it(make_client: MakeClient) -> None:
    client = make_client()
    fields = {"stream_patches": True, "refine": "verify", "max_denoising_steps": 2}
    chunks = stream(client, **ask(hybrid=fields))
    told = [chunk["hybrid"] for chunk in chunks if "hybrid" in chunk]
    assert [one["type"] for one in told] == ["drafted", "patch", "result"]
    draft, patch, result = told
    text = draft["text"]
    for edit in reversed(patch["edits"]):
        assert text[edit["start"] : edit["end"]] == edit["old"]
        text = text[: edit["start"]] + edit["new"] + text[edit["end"] :]
    assert text == FOX
    assert result["edits"] == patch["edits"]
    final = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert final == FOX


def test_what_the_refiner_writes_alone_is_sent_as_it_is_written(client: TestClient) -> None:
    chunks = stream(client, **ask(hybrid={"refine": "generate"}, stop="fo"))
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert len([text for text in texts if text]) > 5
    assert "".join(texts) == "the quick brown "


def test_choices_of_a_stream_are_told_apart(client: TestClient) -> None:
    texts = {0: "", 1: ""}
    for chunk in stream(client, **ask(n=2)):
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: FOX, 1: FOX}


def test_stop_strings_and_log_probabilities_in_a_stream(client: TestClient) -> None:
    body = ask(stop="brown", logprobs=True, hybrid={"refine": "score"})
    chunks = stream(client, **body)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "the quick "
    scored = chunks[-1]["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in scored) == "the quick "


@pytest.mark.parametrize(
    "body", [ask(logprobs=True), ask(hybrid={"task": "x"}), ask("nobody scripted this", n=0)]
)
def test_what_is_refused_before_the_first_part_has_a_status(
    client: TestClient, body: dict[str, Any]
) -> None:
    response = client.post(CHAT, json={**body, "stream": True})
    assert response.status_code == 400
    assert response.json()["error"]["param"]
    assert response.headers["content-type"] == "application/json"


def test_a_completion_stream_has_text(client: TestClient) -> None:
    chunks = stream(client, "/v1/completions", prompt="say it", hybrid={"stream_drafts": True})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == FOX
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_response_stream_is_numbered_and_complete(client: TestClient) -> None:
    found = stream(client, "/v1/responses", input="say it", hybrid={"stream_drafts": True})
    assert [one["sequence_number"] for one in found] == [*range(len(found))]
    kinds = [one["type"] for one in found if "hybrid" not in one]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert any(one.get("hybrid", {}).get("type") == "draft" for one in found)
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == FOX


def test_a_message_stream_has_anthropics_events(client: TestClient) -> None:
    turns = [{"role": "user", "content": "say it"}]
    found = stream(
        client, "/v1/messages", messages=turns, max_tokens=64, hybrid={"stream_drafts": True}
    )
    assert [one["type"] for one in found if one["type"] != "ping"] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = found[0]["message"]
    assert start["usage"] == {"input_tokens": 6, "output_tokens": 0}
    assert start["content"] == [] and start["stop_reason"] is None
    assert any(one["type"] == "ping" and one["hybrid"]["type"] == "draft" for one in found)


def test_a_stream_that_fails_says_so_in_each_apis_way(make_client: MakeClient) -> None:
    client = make_client()
    turns = [{"role": "user", "content": "nobody scripted this"}]
    assert "error" in stream(client, messages=turns)[-1]
    failed = stream(client, "/v1/messages", messages=turns, max_tokens=9)[-1]
    assert failed["type"] == "error" and failed["error"]["type"] == "invalid_request_error"
    assert stream(client, "/v1/responses", input="nobody scripted this")[-1]["type"] == "error"


def a_step(number: int) -> DraftFrame:
    return DraftFrame(0, Denoised(0, number, 9999, ("x",), (True,), (0.0,)))


def test_a_client_that_does_not_read_costs_no_memory_for_drafts() -> None:
    async def run() -> list[Part]:
        outbox = Outbox(frames_per_s=15)
        for number in range(5000):
            outbox.put(a_step(number))
        outbox.put(Delta(0, "text"))
        outbox.close()
        found = []
        while (part := await outbox.take()) is not None:
            found.append(part)
        return found

    frame, delta = anyio.run(run)
    assert isinstance(frame, DraftFrame) and len(frame.earlier) < 100
    assert frame.step.step == 4999
    assert delta == Delta(0, "text")


def test_frames_keep_to_their_rate() -> None:
    async def run() -> int:
        outbox, count = Outbox(frames_per_s=50), 0
        with anyio.move_on_after(0.3):
            number = 0
            while True:
                outbox.put(a_step(number := number + 1))
                await outbox.take()
                count += 1
        return count

    assert anyio.run(run) <= 16
