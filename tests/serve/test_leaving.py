"""A client that leaves frees its row within one step, streaming or not."""

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from hybrid.deadline import Deadline
from hybrid.drafters.scripted import ScriptedDrafter
from hybrid.protocols import DraftJob
from hybrid.types import Draft
from tests.serve.conftest import ANSWERS, MakeApp, ask

STEPS = 1000


@dataclass(frozen=True)
class CountingDrafter(ScriptedDrafter):
    """Takes its steps one at a time, when it is told; counts drafts that began and ended."""

    may_step: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(10**6))
    begun: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    deadlines: list[Deadline] = field(default_factory=list)

    def draft(self, jobs: Sequence[DraftJob]) -> list[Draft]:
        if jobs[0].request.conversation[-1].content != "say it":
            return super().draft(jobs)
        self.begun.append(1)
        try:
            return super().draft(jobs)
        finally:
            self.ended.append(1)

    def _report(self, job: DraftJob, answer: Sequence[int], step: int) -> None:
        if job.request.conversation[-1].content == "say it":
            self.deadlines.append(job.deadline)
            self.may_step.acquire()
            self.taken.append(step)
        super()._report(job, answer, step)


class Client:
    """One request to an ASGI application, which leaves when it is told."""

    def __init__(self, body: Mapping[str, Any], path: str = "/v1/chat/completions") -> None:
        self._body, self._path = json.dumps(body).encode(), path
        self._asked = False
        self.leaves = asyncio.Event()
        self.sent: list[Any] = []

    async def run(self, app: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": headers,
            "server": ("test", 80),
            "client": ("test", 1),
        }
        await app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_whoever_leaves_frees_the_row_within_one_step(
    make_app: MakeApp, is_stream: bool, n: int
) -> None:
    drafter = CountingDrafter(ANSWERS, STEPS)
    app = make_app(drafter=drafter)
    fields = {"max_denoising_steps": STEPS, "stream_drafts": is_stream}
    body = ask(stream=is_stream, n=n, hybrid=fields)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            await _until(lambda: app.state.service.is_loaded)
            while drafter.may_step.acquire(blocking=False):  # from now on step by step
                pass
            client = Client(body)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.run, app)
                drafter.may_step.release(n)
                await _until(lambda: len(drafter.deadlines) == 2 * n)  # the second step has begun
                client.leaves.set()
                await _until(lambda: all(d.cancelled.is_set() for d in drafter.deadlines))
                drafter.may_step.release(n)  # the step that was being taken
            assert not any(message.get("status") == 200 for message in client.sent) or is_stream
            await _until(lambda: len(drafter.ended) == len(drafter.begun))
            assert len(drafter.taken) == 2 * n
            assert app.state.service.in_flight == 0

    anyio.run(run)
    text, _ = app.state.metrics.render()
    cancelled = b'hybrid_requests_total{endpoint="chat",outcome="cancelled",policy="scripted"}'
    assert cancelled + f" {n}.0".encode() in text


def test_a_stream_whose_client_never_reads_ends_and_keeps_nothing(make_app: MakeApp) -> None:
    from hybrid.serve import Settings

    app = make_app(settings=Settings(write_timeout_s=0.05))

    class Deaf(Client):
        async def _send(self, message: Any) -> None:
            self.sent.append(message)
            await anyio.sleep_forever()

    async def run() -> None:
        async with app.router.lifespan_context(app):
            await _until(lambda: app.state.service.is_loaded)
            client = Deaf(ask(stream=True))
            with pytest.raises(BaseExceptionGroup):  # the server closes the connection for it
                await client.run(app)
            assert app.state.service.in_flight == 0

    anyio.run(run)


async def _until(holds: Any) -> None:
    with anyio.fail_after(60):
        while not holds():
            await anyio.sleep(0.005)
