"""OpenAI's responses: `POST /v1/responses` in both directions; nothing is stored."""

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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
from hybrid.serve.errors import ApiError
from hybrid.serve.extension import HybridFields, HybridReport, draft_frame, edits, merge
from hybrid.serve.fields import (
    MAX_MESSAGES,
    Body,
    Content,
    Temperature,
    TokenLimit,
    TopP,
    Turn,
    conversation,
    refuse,
    sampling,
)
from hybrid.serve.sse import event
from hybrid.types import Effort, Message

PARAMETERS = {
    **chat.PARAMETERS,
    "prompt": "input",
    "messages": "input",
    "max_new_tokens": "max_output_tokens",
    "effort": "reasoning.effort",
}
NEUTRAL: Mapping[str, tuple[object, str]] = {
    "tools": (None, "leave it out: tools cannot be called yet"),
    "tool_choice": ("none", "none: tools cannot be called yet"),
    "previous_response_id": (None, "leave it out: nothing is stored, so send the conversation"),
    "conversation": (None, "leave it out: nothing is stored, so send the conversation"),
    "background": (False, "false: answers are not kept for later"),
    "prompt": (None, "leave it out: there are no prompt templates"),
    "top_logprobs": (0, "0: only the chosen tokens are scored"),
    "truncation": ("disabled", "disabled: a conversation is read whole"),
}


def _as_turns(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class InputTurn(Turn):
    """One message of the input."""

    type: Literal["message"] = "message"


Input = Annotated[
    list[InputTurn],
    Field(min_length=1, max_length=MAX_MESSAGES),
    BeforeValidator(_as_turns),
]


class Format(BaseModel):
    """Of the text: plain, until structured output is possible."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class TextSettings(BaseModel):
    """Of the text."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: Format | None = None


class Reasoning(BaseModel):
    """How much to spend."""

    model_config = ConfigDict(extra="allow", strict=True)

    effort: Effort | None = None


class ResponsesRequest(Body):
    """See OpenAI's reference; other parameters are listed in `x-hybrid-ignored`."""

    model: str = Field(default="hybrid", description="A policy's name, or hybrid.", max_length=256)
    input: Input
    instructions: Content | None = None
    max_output_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    reasoning: Reasoning | None = None
    text: TextSettings | None = None
    stream: bool | None = None
    hybrid: HybridFields | None = None


class ResponseUsage(BaseModel):
    """Tokens, with details."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseObject(BaseModel):
    """The answer to a request that is not streamed."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage
    hybrid: HybridReport


def read(body: ResponsesRequest, headers: Mapping[str, str]) -> Call:
    """The call that a body asks for; raises RequestError."""
    ignored = refuse(body.extras(), NEUTRAL)
    options = sampling(body.temperature, body.top_p, None, body.max_output_tokens)
    effort = body.reasoning.effort if body.reasoning else None
    system = (Message("system", body.instructions),) if body.instructions else ()
    fields = body.hybrid or HybridFields()
    return Call(
        endpoint="responses",
        model=body.model,
        prompts=((*system, *conversation(body.input)),),
        options=merge(options, body.hybrid, effort, headers),
        stream=bool(body.stream),
        extension=fields.extension,
        ignored=tuple(ignored),
    )


def write(answer: Answer, extension: Extension) -> dict[str, Any]:
    """The body of an answer."""
    choice = answer.choices[0]
    status = _status(choice)
    values = _shell(answer.head, status)
    if status == "incomplete":
        values["incomplete_details"] = {"reason": "max_output_tokens"}
    return {
        **values,
        "output": [_item(answer.head, status, choice.text)],
        "usage": _usage(answer),
        "hybrid": chat.hybrid_report(choice, answer.head, extension),
    }


def _status(choice: Choice) -> str:
    return "completed" if choice.result.finish_reason == "stop" else "incomplete"


def _shell(head: Head, status: str) -> dict[str, Any]:
    """A response with the fields that clients expect of all, before anything is written."""
    return {
        "id": f"resp_{head.decision_id}",
        "object": "response",
        "created_at": head.created,
        "status": status,
        "model": head.model,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": [],
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "store": False,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_p": None,
        "truncation": "disabled",
        "usage": None,
    }


def _item(head: Head, status: str, text: str | None) -> dict[str, Any]:
    """The message of an answer; with no text yet, it has no part either."""
    return {
        "id": f"msg_{head.decision_id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [] if text is None else [_part(text)],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": answer.completion_tokens,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "denoising_steps": answer.denoising_steps,
            "refiner_passes": answer.refiner_passes,
        },
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


class ResponseStream:
    """A stream of named, numbered events. What hybrid adds travels in `response.in_progress`."""

    def __init__(self, call: Call, head: Head) -> None:
        self._call, self._head = call, head
        self._numbers = count()

    def part(self, part: Part) -> Iterable[bytes]:
        """See `StreamWriter.part`."""
        match part:
            case Started():
                shell = _shell(self._head, "in_progress")
                yield self._event("response.created", response=shell)
                yield self._event("response.in_progress", response=shell)
                item = _item(self._head, "in_progress", None)
                yield self._event("response.output_item.added", output_index=0, item=item)
                yield self._of_text("response.content_part.added", part=_part(""))
            case Delta():
                yield self._of_text("response.output_text.delta", delta=part.text, logprobs=[])
            case DraftFrame():
                yield self._progress(draft_frame(part))
            case DraftText():
                yield self._progress({"type": "drafted", "text": part.text})
            case Patch():
                yield self._progress({"type": "patch", "edits": edits(part.edits)})
            case Ended(choice):
                text, item = choice.text, _item(self._head, "completed", choice.text)
                yield self._of_text("response.output_text.done", text=text, logprobs=[])
                yield self._of_text("response.content_part.done", part=_part(text))
                yield self._event("response.output_item.done", output_index=0, item=item)

    def end(self, answer: Answer) -> Iterable[bytes]:
        """See `StreamWriter.end`."""
        body = write(answer, self._call.extension)
        yield self._event(f"response.{body['status']}", response=body)

    def error(self, error: ApiError) -> Iterable[bytes]:
        """See `StreamWriter.error`."""
        told = {"code": error.code, "message": error.message, "param": error.param}
        yield self._event("error", **told)

    def _of_text(self, kind: str, **values: Any) -> bytes:
        place = {"item_id": f"msg_{self._head.decision_id}", "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **values)

    def _progress(self, hybrid: dict[str, Any]) -> bytes:
        response = _shell(self._head, "in_progress")
        return self._event("response.in_progress", response=response, hybrid=hybrid)

    def _event(self, kind: str, **values: Any) -> bytes:
        return event({"type": kind, "sequence_number": next(self._numbers), **values}, kind)
