"""Server-sent events: a stream that never waits for a slow client, and stops when one leaves.

The work and the sending are two tasks with an `Outbox` between them. Final text is kept until it is
sent; of denoising steps only what fits the frame rate, and none of it costs memory while a client
does not read.
"""

import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hybrid.serve.call import Answer, DraftFrame, Part
from hybrid.serve.errors import CLIENT_GONE, ApiError, api_error, error_response, log, openai_error
from hybrid.serve.settings import Settings
from hybrid.types import Denoised

_MOST_EARLIER = 64
DONE = b"data: [DONE]\n\n"
Emit = Callable[[Part], None]


class StreamWriter(Protocol):
    """A stream in one dialect."""

    def part(self, part: Part) -> Iterable[bytes]:
        """The events of a part."""
        ...

    def end(self, answer: Answer) -> Iterable[bytes]:
        """The last events."""
        ...

    def error(self, error: ApiError) -> Iterable[bytes]:
        """The last events of a stream that failed after it had begun."""
        ...


def event(values: dict[str, Any], name: str | None = None) -> bytes:
    """One event; named where the dialect has names. ASCII: safe whatever the model wrote."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(values, allow_nan=False)}\n\n".encode()


class Outbox:
    """Parts on their way to a client, in order; denoising steps at most `frames_per_s`."""

    def __init__(self, frames_per_s: float) -> None:
        self._interval_s = 1 / frames_per_s
        self._parts: deque[Part] = deque()
        self._steps: dict[int, deque[Denoised]] = {}
        self._changed = anyio.Event()
        self._next_frame = 0.0
        self._is_closed = False

    def put(self, part: Part) -> None:
        """Add a part; never waits."""
        if isinstance(part, DraftFrame):
            steps = self._steps.setdefault(part.index, deque(maxlen=_MOST_EARLIER))
            steps.append(part.step)
        else:
            self._parts.append(part)
        self._changed.set()

    def close(self) -> None:
        """No more will come."""
        self._is_closed = True
        self._changed.set()

    async def take(self) -> Part | None:
        """The next part, waiting for it; None after the last."""
        while True:
            self._changed = anyio.Event()
            now = anyio.current_time()
            if self._steps and (now >= self._next_frame or self._parts or self._is_closed):
                self._next_frame = max(now, self._next_frame) + self._interval_s
                return self._frame()
            if self._parts:
                return self._parts.popleft()
            if self._is_closed:
                return None
            wait_s = self._next_frame - now if self._steps else None
            with anyio.move_on_after(wait_s):
                await self._changed.wait()

    def _frame(self) -> DraftFrame:
        index = next(iter(self._steps))
        *earlier, newest = self._steps.pop(index)
        return DraftFrame(index, newest, tuple(earlier))


class StreamResponse(Response):
    """Runs `work(emit)` and sends what it emits as the writer writes it.

    An error before the first part is an ordinary error response.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        work: Callable[[Emit], Awaitable[Answer]],
        writer: StreamWriter,
        settings: Settings,
        headers: dict[str, str],
    ) -> None:
        super().__init__(
            headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._work, self._writer, self._settings = work, writer, settings
        self._outbox = Outbox(settings.draft_frames_per_s)
        self._answer: Answer | None = None
        self._error: ApiError | None = None
        self._is_over = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it; returns when all is sent or nobody reads it any more."""
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                if not self._is_over:
                    log.info("%s: the client left (%d)", scope["path"], CLIENT_GONE)
                    tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            tasks.start_soon(self._produce)
            await self._send_all(scope, receive, send)
            tasks.cancel_scope.cancel()

    async def _produce(self) -> None:
        try:
            self._answer = await self._work(self._outbox.put)
        except Exception as error:
            self._error = api_error(error)
        self._outbox.close()

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        part = await self._outbox.take()
        if part is None and self._error is not None:
            headers = {**self.headers}
            del headers["content-type"]
            self._is_over = True
            await error_response(scope["path"], self._error, headers)(scope, receive, send)
            return
        await self._send(
            send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        )
        while part is not None:
            for chunk in self._writer.part(part):
                await self._send_chunk(send, chunk)
            part = await self._outbox.take()
        if self._error is not None:
            last = self._writer.error(self._error)
        else:
            assert self._answer is not None
            last = self._writer.end(self._answer)
        for chunk in last:
            await self._send_chunk(send, chunk)
        self._is_over = True
        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_chunk(self, send: Send, chunk: bytes) -> None:
        await self._send(send, {"type": "http.response.body", "body": chunk, "more_body": True})

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        """Raises TimeoutError where a client does not read: the server closes the connection."""
        with anyio.fail_after(self._settings.write_timeout_s):
            await send(message)


def openai_failure(error: ApiError) -> Iterable[bytes]:
    """How a stream of OpenAI's older dialects says that it failed."""
    yield event(openai_error(error))
