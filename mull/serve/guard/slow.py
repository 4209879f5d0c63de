"""Connections that say little, slowly, to hold a place: closed before they have sent a request.

How long a body may take is BodyGuard's affair, how long a response may be read StreamedResponse's.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def protocol(header_seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP, where the headers of every request must arrive within so many seconds."""

    class Punctual(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_clock()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._start_clock()

        def on_headers_complete(self) -> None:
            self._stop_clock()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_clock()
            super().connection_lost(exc)

        def _start_clock(self) -> None:
            self._stop_clock()
            self._deadline = self.loop.call_later(header_seconds, self._close)

        def _stop_clock(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _close(self) -> None:
            if not self.transport.is_closing():
                self.transport.close()

    return Punctual
