"""From hybrid's errors to HTTP: a status, and the shape that each API's clients know.

OpenAI's is `{"error": {message, type, param, code}}`, Anthropic's `{"type": "error", "error":
{type, message}}`. What is not a HybridError is a bug: it is logged, and clients learn no more.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hybrid.errors import (
    BackendError,
    Cancelled,
    CapabilityError,
    CheckpointError,
    DeadlineExceeded,
    HybridError,
    Overloaded,
    RequestError,
)

log = logging.getLogger("hybrid.serve")

CLIENT_GONE = 499
_OPENAI_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
}
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(slots=True)
class ApiError(Exception):
    """What a client is told: `param` is the field that is wrong, in the client's own words."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    @property
    def all_headers(self) -> dict[str, str]:
        """With `Retry-After` in whole seconds, where waiting can help.

        OpenAI's and Anthropic's clients repeat a 408 by themselves, which cannot help here.
        """
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 408:
            headers["x-should-retry"] = "false"
        return headers


def openai_error(error: ApiError) -> dict[str, Any]:
    """The body that OpenAI's clients read."""
    usual = "invalid_request_error" if error.status < 500 else "server_error"
    kind = _OPENAI_KINDS.get(error.status, usual)
    values = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": values}


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """The body that Anthropic's clients read."""
    usual = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_KINDS.get(error.status, usual)
    named = f"{error.param}: " if error.param and not error.message.startswith(error.param) else ""
    return {"type": "error", "error": {"type": kind, "message": named + error.message}}


def is_anthropic(path: str) -> bool:
    """Whether a path is of Anthropic's API."""
    return path.rstrip("/").endswith(("/v1/messages", "/v1/messages/count_tokens"))


def api_error(error: BaseException, names: Mapping[str, str] | None = None) -> ApiError:
    """What a client is told of an error; `names` are its words for fields of a request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HybridError):
        return _of_hybrid(error, names or {})
    if isinstance(error, RequestValidationError):
        return _of_validation(error.errors())
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), "http", headers=error.headers or {})
    log.error("a bug in hybrid", exc_info=error)
    return ApiError(500, "an internal error, which is logged at the server", "internal_error")


def _of_hybrid(error: HybridError, names: Mapping[str, str]) -> ApiError:
    match error:
        case RequestError():
            head, dot, rest = error.field.partition(".")
            field_name = names.get(head, head) + dot + rest
            message = f"{field_name}: {_shown(error.given)} is not allowed; {error.allowed}"
            return ApiError(400, message, "invalid_value", field_name)
        case CapabilityError():
            return ApiError(400, str(error), "not_supported")
        case DeadlineExceeded():
            return ApiError(408, str(error), "deadline_exceeded")
        case Cancelled():
            return ApiError(CLIENT_GONE, str(error), "cancelled")
        case Overloaded():
            wait_s = error.retry_after_s
            return ApiError(429, str(error), "late_before_it_began", retry_after_s=wait_s)
        case BackendError(stage="queue"):
            return ApiError(429, str(error), "queue_full", retry_after_s=1.0)
        case BackendError(retryable=True):
            return ApiError(503, str(error), "backend_unavailable", retry_after_s=1.0)
        case CheckpointError():
            return ApiError(503, str(error), "model_unavailable")
    log.error("a request failed", exc_info=error)
    return ApiError(500, str(error), "backend_error")


def _of_validation(problems: Sequence[Any]) -> ApiError:
    """The first problem; where a body is not JSON, its place."""
    first = problems[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not JSON: {detail} at byte {where[-1]}", "invalid_json")
    name = ".".join(where) or "body"
    text = str(first["msg"]).removeprefix("Value error, ")
    if name == "body":
        text = "send a JSON object, with content-type: application/json"
    return ApiError(400, f"{name}: {text[:1].lower()}{text[1:]}", first["type"], name)


def _shown(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."


class JsonResponse(Response):
    """JSON in ASCII: valid whatever characters a client sent or a model wrote."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """See `Response.render`."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def error_response(
    path: str, error: ApiError, headers: Mapping[str, str] | None = None
) -> Response:
    """The error in the shape of the API that the path is of."""
    shaped = anthropic_error(error) if is_anthropic(path) else openai_error(error)
    return JsonResponse(shaped, error.status, {**(headers or {}), **error.all_headers})
