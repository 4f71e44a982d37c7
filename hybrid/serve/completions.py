"""OpenAI's older completions: `POST /v1/completions`, with `suffix` for a fill in the middle."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from hybrid.errors import RequestError
from hybrid.requests import Options
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
from hybrid.serve.fields import Body, Seed, Stop, Temperature, TokenLimit, TopP, refuse, sampling
from hybrid.serve.sse import DONE, event, openai_failure

MAX_PROMPTS, _USUAL_BLANK = 16, 16  # tokens that OpenAI writes if max_tokens is left out
PARAMETERS = {**chat.PARAMETERS, "prompt": "prompt", "infill": "suffix"}
NEUTRAL: Mapping[str, tuple[object, str]] = {
    "echo": (False, "false: the prompt is not repeated"),
    "best_of": (1, "1; hybrid.refine: best_of chooses among drafts"),
    "frequency_penalty": (0, "0: tokens are not penalised"),
    "presence_penalty": (0, "0: tokens are not penalised"),
    "logit_bias": (None, "leave it out: logits cannot be biased"),
}


def _as_list(value: object) -> object:
    if isinstance(value, list) and value and not all(isinstance(one, str) for one in value):
        raise ValueError("give a text or a list of texts: token ids are not read")
    return [value] if isinstance(value, str) else value


Prompts = Annotated[
    list[str],
    Field(min_length=1, max_length=MAX_PROMPTS),
    BeforeValidator(_as_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 1,
                    "maxItems": MAX_PROMPTS,
                },
            ]
        }
    ),
]


class CompletionRequest(Body):
    """See OpenAI's reference; other parameters are listed in `x-hybrid-ignored`."""

    model: str = Field(default="hybrid", description="A policy's name, or hybrid.", max_length=256)
    prompt: Prompts
    suffix: str | None = Field(default=None, description="Text after what is to be filled in.")
    n: int | None = Field(default=None, ge=1, le=128)
    max_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    logprobs: int | None = Field(default=None, ge=0, le=5)
    stream: bool | None = None
    stream_options: chat.StreamOptions | None = None
    hybrid: HybridFields | None = None


class CompletionChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    finish_reason: chat.FinishReason
    logprobs: dict[str, Any] | None
    hybrid: HybridReport | None = None


class Completion(BaseModel):
    """The answer to a request that is not streamed."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: chat.Usage
    hybrid: HybridReport


def read(body: CompletionRequest, headers: Mapping[str, str], max_choices: int) -> Call:
    """The call that a body asks for; raises RequestError."""
    ignored = refuse(body.extras(), NEUTRAL)
    if body.logprobs:
        raise RequestError("logprobs", body.logprobs, "0: only the chosen tokens are scored")
    options = sampling(body.temperature, body.top_p, body.seed, body.max_tokens)
    options = merge(options, body.hybrid, None, headers)
    between = None
    if body.suffix:
        between = _fill_in(body, options)
    fields = body.hybrid or HybridFields()
    return Call(
        endpoint="completions",
        model=body.model,
        prompts=tuple(body.prompt),
        options=options,
        n=chat.choices(body.n, max_choices),
        stop=tuple(body.stop or ()),
        logprobs=body.logprobs is not None,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        between=between,
        extension=fields.extension,
        ignored=tuple(ignored),
    )


def _fill_in(body: CompletionRequest, options: Options) -> tuple[str, str]:
    """Make the options those of a fill between prompt and suffix; raises RequestError."""
    before, after = body.prompt[0], body.suffix or ""
    if len(body.prompt) > 1 or "infill" in options:
        raise RequestError("suffix", after[:60], "with one prompt, and without hybrid.infill")
    for name, side in (("prompt", before), ("suffix", after)):
        if "<blank" in side:
            raise RequestError(name, side[:60], "text without <blank: the blank is between them")
    tokens = options.pop("max_new_tokens", None) or _USUAL_BLANK
    options["infill"] = f"{before}<blank:{tokens}>{after}"
    return before, after


def write(answer: Answer, extension: Extension) -> dict[str, Any]:
    """The body of an answer."""
    found = []
    for choice in answer.choices:
        values = {
            "index": choice.index,
            "text": choice.text,
            "finish_reason": chat.finish_reason(choice),
            "logprobs": _logprobs(choice),
        }
        if len(answer.choices) > 1:
            values["hybrid"] = chat.hybrid_report(choice, answer.head, extension)
        found.append(values)
    return {
        **_shared(answer.head),
        "choices": found,
        "usage": chat.usage(answer),
        "hybrid": chat.hybrid_report(answer.choices[0], answer.head, extension),
    }


def _shared(head: Head) -> dict[str, Any]:
    values = chat.shared(head, "text_completion")
    return {**values, "id": f"cmpl-{head.decision_id}"}


def _logprobs(choice: Choice) -> dict[str, Any] | None:
    scored = chat.logprobs(choice)
    if scored is None:
        return None
    tokens = [one["token"] for one in scored["content"]]
    offsets = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
    values = [one["logprob"] for one in scored["content"]]
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": None,
        "text_offset": offsets,
    }


class CompletionStream:
    """A stream of chunks, which are completions with part of the text."""

    def __init__(self, call: Call, head: Head) -> None:
        self._call, self._head = call, head

    def part(self, part: Part) -> Iterable[bytes]:
        """See `StreamWriter.part`."""
        match part:
            case Started():
                yield self._chunk(part.index, "")
            case Delta():
                yield self._chunk(part.index, part.text)
            case DraftFrame():
                yield self._chunk(part.index, "", hybrid=draft_frame(part))
            case DraftText():
                yield self._chunk(part.index, "", hybrid={"type": "drafted", "text": part.text})
            case Patch():
                patch = {"type": "patch", "edits": edits(part.edits)}
                yield self._chunk(part.index, "", hybrid=patch)
            case Ended(choice):
                found = chat.hybrid_report(choice, self._head, self._call.extension)
                reason, scores = chat.finish_reason(choice), _logprobs(choice)
                last = {"type": "result", **found}
                yield self._chunk(choice.index, "", reason, scores, last)

    def end(self, answer: Answer) -> Iterable[bytes]:
        """See `StreamWriter.end`."""
        if self._call.include_usage:
            yield event({**_shared(self._head), "choices": [], "usage": chat.usage(answer)})
        yield DONE

    def error(self, error: ApiError) -> Iterable[bytes]:
        """See `StreamWriter.error`."""
        return openai_failure(error)

    def _chunk(
        self,
        index: int,
        text: str,
        reason: str | None = None,
        scores: dict[str, Any] | None = None,
        hybrid: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "text": text, "finish_reason": reason, "logprobs": scores}
        values = {**_shared(self._head), "choices": [choice]}
        if self._call.include_usage:
            values["usage"] = None
        if hybrid is not None:
            values["hybrid"] = hybrid
        return event(values)
