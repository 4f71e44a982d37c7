"""Clients from PyPI against the server that is named: whole answers, and streams with drafts."""

import asyncio
import sys

URL, PROMPT, ANSWER = sys.argv[1], "sort up: 4 8 1 9 3", "1 3 4 8 9"
EXTRA = {"hybrid": {"stream_drafts": True}}


def litellm_client() -> None:
    import litellm

    ask = {
        "model": "openai/hybrid",
        "api_base": f"{URL}/v1",
        "api_key": "none",
        "messages": [{"role": "user", "content": PROMPT}],
    }
    assert litellm.completion(**ask).choices[0].message.content == ANSWER
    chunks = litellm.completion(**ask, stream=True, extra_body=EXTRA)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == ANSWER


def langchain_client() -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="hybrid", base_url=f"{URL}/v1", api_key="none", extra_body=EXTRA)
    assert model.invoke(PROMPT).content == ANSWER
    assert "".join(part.content for part in model.stream(PROMPT)) == ANSWER


def pydantic_ai_client() -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
    agent = Agent(OpenAIChatModel("hybrid", provider=provider))

    async def run() -> None:
        assert (await agent.run(PROMPT)).output == ANSWER
        settings = {"extra_body": EXTRA}
        async with agent.run_stream(PROMPT, model_settings=settings) as stream:
            assert [text async for text in stream.stream_text()][-1] == ANSWER

    asyncio.run(run())


def llama_index_client() -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    model = OpenAILike(
        model="hybrid",
        api_base=f"{URL}/v1",
        api_key="none",
        is_chat_model=True,
        additional_kwargs={"extra_body": EXTRA},
    )
    turns = [ChatMessage(role="user", content=PROMPT)]
    assert model.chat(turns).message.content == ANSWER
    assert "".join(part.delta or "" for part in model.stream_chat(turns)) == ANSWER


failed = []
for check in (litellm_client, langchain_client, pydantic_ai_client, llama_index_client):
    try:
        check()
        print(f"ok      {check.__name__}", flush=True)
    except Exception as error:
        failed.append(check.__name__)
        print(f"FAILED  {check.__name__}: {type(error).__name__}: {error}", flush=True)
sys.exit(len(failed))
