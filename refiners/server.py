"""HTTP to a model server: retries, deadlines and cancelling, and errors that say what to do.

Requests run on one event loop in a thread of their own, so that a caller who goes away is noticed
within 20 ms even while the server is silent, and closing the connection frees the server's slot.
"""

import json
import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Lock, Thread
from time import time
from typing import Any, NoReturn

import anyio
import httpx
from anyio.from_thread import BlockingPortal

from hybrid.deadline import Deadline, format_duration
from hybrid.errors import BackendError, Cancelled

OnEvent = Callable[[dict[str, Any]], bool]

RETRIES = 3
_FIRST_WAIT_S, _LONGEST_WAIT_S, _POLL_S = 0.1, 5.0, 0.02
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_HINTS = {
    401: "it wants a key: set the environment variable {key}",
    403: "the key in {key} may not use it",
    404: "no such path or model there: the url ends in /v1, and served_as is the server's name",
}


class Late(Exception):
    """The deadline came before the answer did."""


class Refused(BackendError):
    """An answer with an error status; `wait_s` is how long the server asked to wait."""

    wait_s: float | None = None


@dataclass
class Server:
    """An OpenAI-compatible server at `url`; `key_name` is the variable that holds its key.

    `timeout_s` is the longest silence that is waited through, whatever the deadline.
    """

    url: str
    key: str | None
    key_name: str
    timeout_s: float
    _client: httpx.AsyncClient | None = field(default=None, init=False)
    _portal: BlockingPortal | None = field(default=None, init=False)
    _starting: Lock = field(default_factory=Lock, init=False)

    def ask(self, stage: str, path: str, body: dict[str, Any] | None, deadline: Deadline) -> Any:
        """The JSON answer; GET without a body. Raises BackendError, Cancelled or Late."""
        for attempt in range(RETRIES + 1):
            try:
                return self._run(deadline, self._ask, stage, path, body)
            except BackendError as error:
                self.wait(error, attempt, deadline)
        raise AssertionError("the last attempt raises")

    def listen(
        self, stage: str, path: str, body: dict[str, Any], on_event: OnEvent, deadline: Deadline
    ) -> None:
        """Hand every server-sent event to `on_event` until it says stop; one attempt.

        Raises as `ask` does, and also a BackendError for a stream that ends without its mark.
        """
        self._run(deadline, self._listen, stage, path, body, on_event)

    def wait(self, error: BackendError, attempt: int, deadline: Deadline) -> None:
        """Before another attempt: as long as the server asked for, or a little longer each time.

        Raises `error` if another attempt makes no sense, or would come too late.
        """
        asked = error.wait_s if isinstance(error, Refused) else None
        wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0))
        wait_s = wait_s if asked is None else asked
        hopeless = wait_s > _LONGEST_WAIT_S or wait_s >= deadline.remaining_s
        if not error.retryable or attempt >= RETRIES or hopeless:
            raise error
        if deadline.cancelled.wait(wait_s):
            raise Cancelled("cancelled by the caller")

    def _run(self, deadline: Deadline, work: Callable[..., Any], *arguments: Any) -> Any:
        with self._starting:
            if self._portal is None:
                self._portal = _start_portal()
        return self._portal.call(self._supervise, deadline, work, *arguments)

    async def _supervise(
        self, deadline: Deadline, work: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Work until it is done, too late, or nobody waits for it."""
        if self._client is None:
            headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
            timeout = httpx.Timeout(self.timeout_s, pool=None)
            self._client = httpx.AsyncClient(headers=headers, timeout=timeout)
        result, problem = None, None
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(_watch, deadline, scope)
                try:
                    result = await work(*arguments)
                except Exception as error:  # a task group would wrap it
                    problem = error
                group.cancel_scope.cancel()
        if problem is not None:
            raise problem
        if scope.cancelled_caught:
            deadline.raise_if_cancelled()
            raise Late
        return result

    async def _ask(self, stage: str, path: str, body: dict[str, Any] | None) -> Any:
        assert self._client is not None
        method = "GET" if body is None else "POST"
        try:
            response = await self._client.request(method, f"{self.url}{path}", json=body)
        except httpx.HTTPError as error:
            self._fail(stage, _describe(error, self.timeout_s))
        if response.status_code != 200:
            self._refuse(stage, response)
        return self._parse(stage, response.text)

    async def _listen(self, stage: str, path: str, body: dict[str, Any], on_event: OnEvent) -> None:
        assert self._client is not None
        try:
            async with self._client.stream("POST", f"{self.url}{path}", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    self._refuse(stage, response)
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]" or on_event(self._parse(stage, data)):
                        return
        except httpx.HTTPError as error:
            self._fail(stage, _describe(error, self.timeout_s))
        self._fail(stage, "the connection was closed in mid-answer")

    def _parse(self, stage: str, text: str) -> Any:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise BackendError(stage, f"{self.url}: not a JSON object: {text[:80]!r}")
        if "error" in value and "choices" not in value:  # in a stream, after status 200
            self._fail(stage, _message(value))
        return value

    def _refuse(self, stage: str, response: httpx.Response) -> NoReturn:
        status = response.status_code
        try:
            message = _message(response.json())
        except ValueError:
            message = response.text[:200]
        hint = _HINTS.get(status, "").format(key=self.key_name)
        parts = [f"{status} {response.reason_phrase}", hint, message]
        message = f"{self.url}: " + "; ".join(filter(None, parts))
        error = Refused(stage, message, retryable=status in _BUSY)
        error.wait_s = _retry_after(response.headers.get("retry-after"))
        raise error

    def _fail(self, stage: str, message: str) -> NoReturn:
        raise BackendError(stage, f"{self.url}: {message}", retryable=True)


async def _watch(deadline: Deadline, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when it is too late, or nobody waits any more."""
    while not (deadline.expired or deadline.cancelled.is_set()):
        await anyio.sleep(min(_POLL_S, max(0.001, deadline.remaining_s)))
    scope.cancel()


def _describe(error: httpx.HTTPError, timeout_s: float) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"silent for {format_duration(timeout_s)}"
    return str(error) or type(error).__name__


def _message(value: Any) -> str:
    """What an error body says; servers wrap it in different ways."""
    error = value.get("error", value) if isinstance(value, dict) else value
    text = error.get("message", error) if isinstance(error, dict) else error
    return str(text)[:200]


def _retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    except ValueError:
        return None


def _start_portal() -> BlockingPortal:
    """An event loop in a thread that does not keep the process from ending."""
    started: Future[BlockingPortal] = Future()

    async def serve() -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    Thread(target=anyio.run, args=(serve,), name="hybrid-http", daemon=True).start()
    return started.result()
