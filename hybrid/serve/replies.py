"""From a call to an HTTP response: whole or streamed, in the dialect that was spoken.

A client that leaves cancels its work in both cases; ASGI servers do that for streams alone.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response

from hybrid.errors import HybridError
from hybrid.serve.access import key_of
from hybrid.serve.call import Answer, Call, Extension, Head
from hybrid.serve.errors import CLIENT_GONE, JsonResponse, api_error, log
from hybrid.serve.fields import header_list
from hybrid.serve.service import Emit, Service
from hybrid.serve.sse import StreamResponse, StreamWriter

T = TypeVar("T")
_TRACE = ("traceparent", "tracestate")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How answers are written, and what a Request's fields are called."""

    write: Callable[[Answer, Extension], dict[str, Any]]
    stream: Callable[[Call, Head], StreamWriter]
    parameters: Mapping[str, str]


def service_of(request: Request) -> Service:
    """The application's."""
    service: Service = request.app.state.service
    return service


async def reply(request: Request, dialect: Dialect, read: Callable[[], Call]) -> Response:
    """Answer a request; raises ApiError."""
    service = service_of(request)
    sent = {name: request.headers[name] for name in _TRACE if name in request.headers}
    call = replace(translated(dialect.parameters, read), trace=sent)
    head = service.head(call)
    key = key_of(request)
    key.check_policy(head.model)
    headers = decision_headers(call, head)

    async def work(emit: Emit | None = None) -> Answer:
        try:
            answer = await service.answer(call, head, emit)
        except HybridError as error:
            raise api_error(error, dialect.parameters) from error
        key.spend(answer.prompt_tokens + answer.completion_tokens)
        return answer

    if call.stream:
        writer = dialect.stream(call, head)
        return StreamResponse(work, writer, service.settings, headers)
    found = await unless_gone(request, work())
    if found is None:
        return Response(status_code=CLIENT_GONE)
    return JsonResponse(dialect.write(found, call.extension), headers=headers)


def decision_headers(call: Call, head: Head) -> dict[str, str]:
    """What every answer says of itself in headers."""
    headers = {"x-hybrid-decision-id": head.decision_id, "x-hybrid-policy": head.policy_sha}
    if call.ignored:
        headers["x-hybrid-ignored"] = header_list(call.ignored)
    return headers


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """What the work comes to; None, and it is cancelled, if the client leaves before that."""
    found: list[T] = []
    failed: list[Exception] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        log.info("%s %s: the client left (%d)", request.method, request.url.path, CLIENT_GONE)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            found.append(await work)
        except Exception as error:  # raised below, out of the group, as it is
            failed.append(error)
        tasks.cancel_scope.cancel()
    if failed:
        raise failed[0]
    return found[0] if found else None


def translated(parameters: Mapping[str, str], read: Callable[[], Call]) -> Call:
    """What is read; raises ApiError with the client's own name of a field."""
    try:
        return read()
    except HybridError as error:
        raise api_error(error, parameters) from error
