"""Anthropic's messages: `POST /v1/messages` and its `count_tokens`, in both directions."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hybrid.serve import chat
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
from hybrid.serve.errors import ApiError, anthropic_error
from hybrid.serve.extension import HybridFields, HybridReport, draft_frame, edits, merge
from hybrid.serve.fields import (
    MAX_MESSAGES,
    MAX_STOPS,
    Body,
    Content,
    StopText,
    TokenLimit,
    TopP,
    Turn,
    conversation,
    refuse,
    sampling,
)
from hybrid.serve.sse import event
from hybrid.types import Message

PARAMETERS = {**chat.PARAMETERS, "effort": "output_config.effort"}
NEUTRAL: Mapping[str, tuple[object, str]] = {
    "tools": (None, "leave it out: tools cannot be called yet"),
    "tool_choice": ({"type": "none"}, "leave it out: tools cannot be called yet"),
    "thinking": ({"type": "disabled"}, "type: disabled; thinking is not possible yet"),
    "top_k": (None, "leave it out: tokens are drawn from the whole distribution"),
    "mcp_servers": (None, "leave it out: nothing is fetched"),
    "container": (None, "leave it out: no code is run"),
}


class AnthropicTurn(Turn):
    """One message."""

    role: Literal["user", "assistant"]


class CountRequest(Body):
    """What would be read."""

    model: str = Field(default="hybrid", description="A policy's name, or hybrid.", max_length=256)
    messages: Annotated[list[AnthropicTurn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Content | None = None


class MessagesRequest(CountRequest):
    """See Anthropic's reference; other parameters are listed in `x-hybrid-ignored`."""

    max_tokens: TokenLimit
    stop_sequences: Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: TopP | None = None
    stream: bool | None = None
    hybrid: HybridFields | None = None


class AnthropicUsage(BaseModel):
    """Tokens, and what was done for them."""

    model_config = ConfigDict(extra="allow")

    input_tokens: int
    output_tokens: int


class TextBlock(BaseModel):
    """Text of an answer."""

    type: Literal["text"]
    text: str


class AnthropicMessage(BaseModel):
    """The answer to a request that is not streamed."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence"]
    stop_sequence: str | None
    usage: AnthropicUsage
    hybrid: HybridReport


class TokenCount(BaseModel):
    """How many tokens a conversation has."""

    input_tokens: int


def read(body: MessagesRequest, headers: Mapping[str, str]) -> Call:
    """The call that a body asks for; raises RequestError."""
    ignored = refuse(body.extras(), NEUTRAL)
    options = sampling(body.temperature, body.top_p, None, body.max_tokens)
    fields = body.hybrid or HybridFields()
    return Call(
        endpoint="messages",
        model=body.model,
        prompts=(_conversation(body),),
        options=merge(options, body.hybrid, None, headers),
        stop=tuple(body.stop_sequences or ()),
        stream=bool(body.stream),
        extension=fields.extension,
        ignored=tuple(ignored),
    )


def read_count(body: CountRequest) -> Call:
    """The call whose prompt is to be counted; what does not lengthen it may say anything."""
    return Call("count_tokens", body.model, (_conversation(body),), {})


def _conversation(body: CountRequest) -> tuple[Message, ...]:
    system = (Message("system", body.system),) if body.system else ()
    return (*system, *conversation(body.messages))


def write(answer: Answer, extension: Extension) -> dict[str, Any]:
    """The body of an answer."""
    choice = answer.choices[0]
    return {
        **_shell(answer.head),
        "content": [{"type": "text", "text": choice.text}],
        "stop_reason": _stop_reason(choice),
        "stop_sequence": choice.stop,
        "usage": {"input_tokens": answer.prompt_tokens, **_written(choice)},
        "hybrid": chat.hybrid_report(choice, answer.head, extension),
    }


def _shell(head: Head) -> dict[str, Any]:
    """A message before anything is written."""
    return {
        "id": f"msg_{head.decision_id}",
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _stop_reason(choice: Choice) -> str:
    if choice.stop is not None:
        return "stop_sequence"
    return "end_turn" if choice.result.finish_reason == "stop" else "max_tokens"


def _written(choice: Choice) -> dict[str, Any]:
    usage = choice.result.usage
    return {
        "output_tokens": usage.completion_tokens,
        "denoising_steps": usage.denoising_steps,
        "refiner_passes": usage.refiner_passes,
    }


class MessageStream:
    """A stream of named events. What hybrid adds travels in `ping` events, which clients skip."""

    def __init__(self, call: Call, head: Head) -> None:
        self._call, self._head = call, head

    def part(self, part: Part) -> Iterable[bytes]:
        """See `StreamWriter.part`."""
        match part:
            case Started():
                usage = {"input_tokens": part.prompt_tokens, "output_tokens": 0}
                yield _event("message_start", message={**_shell(self._head), "usage": usage})
                block = {"type": "text", "text": ""}
                yield _event("content_block_start", index=0, content_block=block)
            case Delta():
                delta = {"type": "text_delta", "text": part.text}
                yield _event("content_block_delta", index=0, delta=delta)
            case DraftFrame():
                yield _event("ping", hybrid=draft_frame(part))
            case DraftText():
                yield _event("ping", hybrid={"type": "drafted", "text": part.text})
            case Patch():
                yield _event("ping", hybrid={"type": "patch", "edits": edits(part.edits)})
            case Ended(choice):
                yield _event("content_block_stop", index=0)
                found = chat.hybrid_report(choice, self._head, self._call.extension)
                ending: dict[str, str | None] = {
                    "stop_reason": _stop_reason(choice),
                    "stop_sequence": choice.stop,
                }
                yield _event(
                    "message_delta",
                    delta=ending,
                    usage=_written(choice),
                    hybrid={"type": "result", **found},
                )

    def end(self, answer: Answer) -> Iterable[bytes]:
        """See `StreamWriter.end`."""
        yield _event("message_stop")

    def error(self, error: ApiError) -> Iterable[bytes]:
        """See `StreamWriter.error`."""
        yield event(anthropic_error(error), "error")


def _event(kind: str, **values: Any) -> bytes:
    return event({"type": kind, **values}, kind)
