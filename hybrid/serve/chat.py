"""OpenAI's chat completions: `POST /v1/chat/completions` in both directions."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hybrid.errors import RequestError
from hybrid.serve.call import (
    Answer,
    Call,
    Choice,
    Delta,
    DraftFrame,
    DraftText,
    Ended,
    Extension,
    Head,
    Part,
    Patch,
    Started,
)
from hybrid.serve.errors import ApiError
from hybrid.serve.extension import HybridFields, HybridReport, draft_frame, edits, merge, report
from hybrid.serve.fields import (
    Body,
    Seed,
    Stop,
    Temperature,
    TokenLimit,
    TopP,
    Turns,
    conversation,
    refuse,
    sampling,
)
from hybrid.serve.sse import DONE, event, openai_failure
from hybrid.types import Effort

PARAMETERS = {  # the names of a Request's fields in this dialect
    "budget": "hybrid.budget",
    "task": "hybrid.task",
    "refine": "hybrid.refine",
    "infill": "hybrid.infill",
    "checks": "hybrid.checks",
    "max_denoising_steps": "hybrid.max_denoising_steps",
    "max_new_tokens": "max_tokens",
    "prompt": "messages",
    "effort": "reasoning_effort",
}
NEUTRAL: Mapping[str, tuple[object, str]] = {
    "tools": (None, "leave it out: tools cannot be called yet"),
    "functions": (None, "leave it out: functions cannot be called yet"),
    "tool_choice": ("none", "none: tools cannot be called yet"),
    "function_call": ("none", "none: functions cannot be called yet"),
    "response_format": ({"type": "text"}, "text: structured output is not possible yet"),
    "frequency_penalty": (0, "0: tokens are not penalised"),
    "presence_penalty": (0, "0: tokens are not penalised"),
    "logit_bias": (None, "leave it out: logits cannot be biased"),
    "modalities": (["text"], "text alone"),
    "audio": (None, "leave it out: text alone is written"),
    "prediction": (None, "leave it out: the drafter predicts"),
    "web_search_options": (None, "leave it out: nothing is searched"),
    "top_logprobs": (0, "0: only the chosen tokens are scored"),
}


class StreamOptions(BaseModel):
    """Of a stream."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool = False


class ChatRequest(Body):
    """See OpenAI's reference; other parameters are listed in `x-hybrid-ignored`."""

    model: str = Field(default="hybrid", description="A policy's name, or hybrid.", max_length=256)
    messages: Turns
    n: int | None = Field(default=None, ge=1, le=128)
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    logprobs: bool | None = None
    reasoning_effort: Effort | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    hybrid: HybridFields | None = None


class Usage(BaseModel):
    """Tokens, and what was done for them in the details."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: dict[str, int]


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


FinishReason = Literal["stop", "length"]


class ChatChoice(BaseModel):
    """One answer; a budget that ran out is `length`, and `hybrid.finish_reason` says so."""

    index: int
    message: ChatMessage
    finish_reason: FinishReason
    logprobs: dict[str, Any] | None
    hybrid: HybridReport | None = None


class ChatCompletion(BaseModel):
    """The answer to a request that is not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    hybrid: HybridReport


def read(body: ChatRequest, headers: Mapping[str, str], max_choices: int) -> Call:
    """The call that a body asks for; raises RequestError."""
    ignored = refuse(body.extras(), NEUTRAL)
    if body.max_tokens and body.max_completion_tokens not in (None, body.max_tokens):
        allowed = "give max_tokens or max_completion_tokens: they are one limit"
        raise RequestError("max_tokens", body.max_tokens, allowed)
    limit = body.max_completion_tokens or body.max_tokens
    options = sampling(body.temperature, body.top_p, body.seed, limit)
    fields = body.hybrid or HybridFields()
    return Call(
        endpoint="chat",
        model=body.model,
        prompts=(conversation(body.messages),),
        options=merge(options, body.hybrid, body.reasoning_effort, headers),
        n=choices(body.n, max_choices),
        stop=tuple(body.stop or ()),
        logprobs=bool(body.logprobs),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        extension=fields.extension,
        ignored=tuple(ignored),
    )


def choices(n: int | None, most: int) -> int:
    """How many answers; raises RequestError above the server's limit."""
    if n is not None and n > most:
        raise RequestError("n", n, f"from 1 to {most}")
    return n or 1


def write(answer: Answer, extension: Extension) -> dict[str, Any]:
    """The body of an answer."""
    found = []
    for choice in answer.choices:
        values: dict[str, Any] = {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "finish_reason": finish_reason(choice),
            "logprobs": logprobs(choice),
        }
        if len(answer.choices) > 1:
            values["hybrid"] = hybrid_report(choice, answer.head, extension)
        found.append(values)
    return {
        **shared(answer.head, "chat.completion"),
        "choices": found,
        "usage": usage(answer),
        "hybrid": hybrid_report(answer.choices[0], answer.head, extension),
    }


def shared(head: Head, kind: str) -> dict[str, Any]:
    """What an answer and every chunk of a stream begin with."""
    return {
        "id": f"chatcmpl-{head.decision_id}",
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": f"policy-{head.policy_sha}",
    }


def finish_reason(choice: Choice) -> FinishReason:
    """Clients know no other word for a budget that ran out than `length`."""
    ended = choice.stop is not None or choice.result.finish_reason == "stop"
    return "stop" if ended else "length"


def logprobs(choice: Choice) -> dict[str, Any] | None:
    """Each token with its log-probability, up to where a stop string cut the text."""
    if choice.logprobs is None:
        return None
    content, length = [], 0
    for piece, value in choice.logprobs:
        if length >= len(choice.text):
            break
        length += len(piece)
        token = {"token": piece, "logprob": value, "bytes": [*piece.encode()], "top_logprobs": []}
        content.append(token)
    return {"content": content, "refusal": None}


def usage(answer: Answer) -> dict[str, Any]:
    """Tokens, with denoising steps and refiner passes in the details."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "denoising_steps": answer.denoising_steps,
            "refiner_passes": answer.refiner_passes,
        },
    }


def hybrid_report(choice: Choice, head: Head, extension: Extension) -> dict[str, Any]:
    """The `hybrid` object of a choice."""
    return report(choice, head.model, head.policy_sha, head.decision_id, extension.explain)


class ChatStream:
    """A stream of chunks. Every chunk has a choice, but for the usage that was asked for: naive
    clients index it without looking.
    """

    def __init__(self, call: Call, head: Head) -> None:
        self._call, self._head = call, head

    def part(self, part: Part) -> Iterable[bytes]:
        """See `StreamWriter.part`."""
        match part:
            case Started():
                yield self._chunk(part.index, {"role": "assistant", "content": ""})
            case Delta():
                yield self._chunk(part.index, {"content": part.text})
            case DraftFrame():
                yield self._chunk(part.index, {}, hybrid=draft_frame(part))
            case DraftText():
                yield self._chunk(part.index, {}, hybrid={"type": "drafted", "text": part.text})
            case Patch():
                patch = {"type": "patch", "edits": edits(part.edits)}
                yield self._chunk(part.index, {}, hybrid=patch)
            case Ended(choice):
                found = hybrid_report(choice, self._head, self._call.extension)
                yield self._chunk(
                    choice.index,
                    {},
                    finish_reason(choice),
                    logprobs(choice),
                    hybrid={"type": "result", **found},
                )

    def end(self, answer: Answer) -> Iterable[bytes]:
        """See `StreamWriter.end`."""
        if self._call.include_usage:
            values = shared(self._head, "chat.completion.chunk")
            yield event({**values, "choices": [], "usage": usage(answer)})
        yield DONE

    def error(self, error: ApiError) -> Iterable[bytes]:
        """See `StreamWriter.error`."""
        return openai_failure(error)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        scores: dict[str, Any] | None = None,
        hybrid: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": scores}
        values = {**shared(self._head, "chat.completion.chunk"), "choices": [choice]}
        if self._call.include_usage:
            values["usage"] = None
        if hybrid is not None:
            values["hybrid"] = hybrid
        return event(values)
