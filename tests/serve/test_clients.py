"""OpenAI's and Anthropic's own clients, unmodified, over a socket."""

import asyncio

import anthropic
import openai
import pytest

from hybrid.embedded.tasks import check, experiment_set
from hybrid.serve import create_app
from tests.serve.conftest import running

SORT = "sort up: 4 8 1 9 3"
SORTED = "1 3 4 8 9"
USER: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": SORT}]


@pytest.fixture
def client(server_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def claude(server_url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server_url, api_key="none", max_retries=0)


def test_openai_chats(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="balanced", messages=USER, seed=1, n=2)
    assert [choice.message.content for choice in answer.choices] == [SORTED, SORTED]
    assert answer.usage is not None and answer.usage.prompt_tokens > 0
    assert answer.model_extra is not None
    assert answer.model_extra["hybrid"]["within_budget"]


def test_openai_streams_with_drafts_and_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="hybrid",
        messages=USER,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"hybrid": {"stream_drafts": True, "refine": "none"}},
    )
    text, drafts, usage = "", 0, None
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        drafts += ((chunk.model_extra or {}).get("hybrid") or {}).get("type") == "draft"
        usage = chunk.usage or usage
    assert text == SORTED and drafts >= 1
    assert usage is not None and usage.completion_tokens == 6


def test_openais_stream_helper_accumulates(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="hybrid", messages=USER) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == SORTED


def test_openai_completes_and_responds(client: openai.OpenAI) -> None:
    assert client.completions.create(model="hybrid", prompt=SORT).choices[0].text == SORTED
    response = client.responses.create(model="hybrid", input=SORT)
    assert response.output_text == SORTED and response.status == "completed"
    with client.responses.stream(model="hybrid", input=SORT) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == SORTED
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["hybrid", "balanced", "fast"]
    assert client.models.retrieve("fast").id == "fast"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("slow")


def test_openais_errors_are_typed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="hybrid", messages=USER, top_p=0.5)
    assert caught.value.param == "top_p"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt", messages=USER)


def test_openais_timeout_is_an_upper_bound_of_the_budget(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="hybrid", messages=USER, timeout=1.5)
    assert answer.model_extra is not None
    assert answer.model_extra["hybrid"]["budget_ms"] == 1500


def test_openai_asks_asynchronously(server_url: str) -> None:
    cases = experiment_set("sort", 8)

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none") as client:

            async def one(prompt: str) -> str:
                answer = await client.chat.completions.create(
                    model="hybrid", messages=[{"role": "user", "content": prompt}]
                )
                return answer.choices[0].message.content or ""

            return await asyncio.gather(*(one(case.prompt) for case in cases))

    texts = asyncio.run(run())
    assert all(check(case, text) for case, text in zip(cases, texts, strict=True))


def test_openai_comes_again_when_it_is_told_to(server_url: str) -> None:
    app = create_app("fast")
    with running(app) as url:
        service = app.state.service
        service.is_loaded = False
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError, match="loading"):
            client.chat.completions.create(model="hybrid", messages=USER)
        seen: list[int] = []

        def refuse() -> None:
            seen.append(1)
            service.is_loaded = len(seen) > 1
            type(service).refuse_if_not_ready(service)

        service.refuse_if_not_ready = refuse
        again = client.with_options(max_retries=2)
        assert again.chat.completions.create(model="hybrid", messages=USER).choices
        assert len(seen) == 2


def test_anthropic_asks_streams_and_counts(claude: anthropic.Anthropic) -> None:
    turns: list[anthropic.types.MessageParam] = [{"role": "user", "content": SORT}]
    message = claude.messages.create(model="hybrid", max_tokens=50, messages=turns)
    (block,) = message.content
    assert isinstance(block, anthropic.types.TextBlock)
    assert block.text == SORTED and message.stop_reason == "end_turn"
    with claude.messages.stream(model="hybrid", max_tokens=50, messages=turns) as stream:
        assert "".join(stream.text_stream) == SORTED
        assert stream.get_final_message().usage.output_tokens == 6
    counted = claude.messages.count_tokens(model="hybrid", messages=turns)
    assert counted.input_tokens == message.usage.input_tokens
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude", max_tokens=5, messages=turns)


def test_anthropic_reads_drafts_as_pings(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(
        model="hybrid",
        max_tokens=50,
        messages=[{"role": "user", "content": SORT}],
        extra_body={"hybrid": {"stream_drafts": True, "refine": "none"}},
    ) as stream:
        assert stream.get_final_text() == SORTED
