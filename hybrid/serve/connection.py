"""Connections that are bounded in time: what sends its headers too slowly is closed.

uvicorn bounds the size of headers and the time between requests, but waits for the end of a header
for as long as one more byte comes.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from hybrid.serve.settings import Settings


class BoundedProtocol(H11Protocol):
    """A connection whose first and later requests must begin and end their headers in time."""

    header_timeout_s = 10.0

    @classmethod
    def bounded(cls, settings: Settings) -> type["BoundedProtocol"]:
        """The protocol with a server's timeout."""
        return type("BoundedProtocol", (cls,), {"header_timeout_s": settings.header_timeout_s})

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._header_timer: asyncio.TimerHandle | None = None
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        had_cycle = self.cycle
        if self._header_timer is None and (had_cycle is None or had_cycle.response_complete):
            self._await_headers()
        super().data_received(data)
        if self.cycle is not had_cycle:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._stop_timer()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.header_timeout_s, self._abort)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _abort(self) -> None:
        self.transport.abort()
