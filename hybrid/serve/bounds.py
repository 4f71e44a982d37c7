"""ASGI middleware that bounds what a request may send, before anything reads it.

A body is refused by its declared length, or as soon as more has come than is allowed; one that
comes too slowly ends with 408.
"""

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybrid.serve.errors import ApiError, error_response
from hybrid.serve.settings import Settings


class BodyLimit:
    """Reads the whole body within its bounds, then hands it on as one message."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
        except ApiError as error:
            close = {"connection": "close"}  # what is still coming is not read
            await error_response(scope["path"], error, close)(scope, receive, send)
            return
        if body is None:  # the client has left
            return
        await self._app(scope, _whole(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        most = self._settings.max_body_bytes
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise _too_large(most)
        parts: list[bytes] = []
        size = 0
        with anyio.move_on_after(self._settings.body_timeout_s) as timer:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise _too_large(most)
                if not message.get("more_body", False):
                    return b"".join(parts)
        assert timer.cancelled_caught
        limit = self._settings.body_timeout_s
        raise ApiError(408, f"the body did not come within {limit:g} s", "body_timeout")


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"a body may have {most} bytes", "body_too_large")


def _whole(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body first, and then whatever else happens."""
    is_read = False

    async def read() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read
