"""A server process: uvicorn around the application, its signals, and an end that loses nobody.

SIGTERM or SIGINT: `/ready` says 503, what runs may end within the drain time, the rest is told why
it ends. A second signal ends at once. SIGHUP reads the policy files again.
"""

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from hybrid.errors import BackendError
from hybrid.serve.connection import BoundedProtocol
from hybrid.serve.service import Service

log = logging.getLogger("hybrid.serve")
_USUAL_DRAIN_S, _POLL_S, _LAST_WORDS_S = 30.0, 0.02, 2.0


class Server(uvicorn.Server):
    """A uvicorn server that drains."""

    def __init__(
        self, app: FastAPI, host: str, port: int, ready: Callable[[str], None] = lambda url: None
    ) -> None:
        self._service: Service = app.state.service
        settings = self._service.settings
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=BoundedProtocol.bounded(settings),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=settings.max_connections,
                h11_max_incomplete_event_size=settings.max_header_bytes,
                timeout_keep_alive=int(settings.keep_alive_s),
                timeout_graceful_shutdown=None,
                root_path=settings.root_path,
            )
        )
        self._ready = ready
        self._watching: asyncio.Task[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started:
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Say when the models are there; end the server if they are not to be had."""
        service = self._service
        while not service.is_loaded:
            if service.load_error is not None:
                self.should_exit = True
                return
            await asyncio.sleep(_POLL_S)
        self._ready(self.address)

    @property
    def address(self) -> str:
        """Where it listens, once it does."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def shutdown(self, sockets: Any = None) -> None:
        """Let what runs end within the drain time, then see uvicorn."""
        service = self._service
        service.is_draining = True
        drain_s = service.settings.drain_s
        if drain_s is None:
            drain_s = service.policies.longest_budget_s or _USUAL_DRAIN_S
        if service.in_flight:
            log.info("stopping: %d requests may end within %g s", service.in_flight, drain_s)
        await self._until_idle(drain_s)
        if service.in_flight:
            log.warning("%d requests did not end in time and are told so", service.in_flight)
            service.cancel_all()
            await self._until_idle(_LAST_WORDS_S)
        self.config.timeout_graceful_shutdown = int(_LAST_WORDS_S)
        await super().shutdown(sockets)

    async def _until_idle(self, seconds: float) -> None:
        """Wait until nothing is answered any more: at most so long, or until a second signal."""
        end = asyncio.get_running_loop().time() + seconds
        while self._service.in_flight and not self.force_exit:
            if asyncio.get_running_loop().time() >= end:
                return
            await asyncio.sleep(_POLL_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def serve(
    app: FastAPI, host: str, port: int, ready: Callable[[str], None] = lambda url: None
) -> None:
    """Serve until a signal comes; raises BackendError if the models or the address cannot be had.

    `ready` is told the address once requests are answered.
    """
    server = Server(app, host, port, ready)
    service: Service = app.state.service
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: service.policies.reload())
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run()
    except (SystemExit, KeyboardInterrupt):
        pass  # uvicorn's way to say that it could not start, or was stopped
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
    if service.load_error is not None:
        raise BackendError("load", service.load_error)
    if not server.started:
        raise BackendError("listen", f"{host}:{port} cannot be had; is it taken?", retryable=True)
