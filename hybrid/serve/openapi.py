"""What the OpenAPI document says of answers: their shapes, and those of errors."""

from typing import Any, Literal

from pydantic import BaseModel


class OpenAIErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """An error as OpenAI's clients read it."""

    error: OpenAIErrorDetail


class AnthropicErrorDetail(BaseModel):
    """What is wrong."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """An error as Anthropic's clients read it."""

    type: Literal["error"]
    error: AnthropicErrorDetail


_ERRORS = {
    400: "A field is wrong, or something is asked for that is not possible.",
    401: "A valid key is missing.",
    403: "The key may not use this policy.",
    404: "No policy of this name is served.",
    408: "The budget ran out, and the policy returns no partial answer.",
    413: "The body is too large.",
    422: "Not used: a wrong field is a 400.",
    429: "Too many requests; Retry-After says when to come again.",
    500: "A backend failed.",
    503: "The models are loading, or the server is stopping.",
}


def _errors(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": model, "description": text} for code, text in _ERRORS.items()}


OPENAI_ERRORS = _errors(OpenAIError)
ANTHROPIC_ERRORS = _errors(AnthropicError)


def answers(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """An answer as JSON, or as server-sent events where `stream` is true."""
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    return {200: {"model": model, "description": "The answer.", "content": stream}}
