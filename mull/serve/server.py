"""One process that listens: the socket, the signals, and the line that says where it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Coroutine
from types import FrameType
from typing import Any

import uvicorn

from mull.errors import MullError, RequestError
from mull.serve.accounts.gate import check_ready
from mull.serve.app import create_app
from mull.serve.errors import ApiError
from mull.serve.guard.slow import protocol
from mull.serve.logs import note, set_up
from mull.serve.serving import serving_of
from mull.serve.settings import Settings

_KEEP_ALIVE_SECONDS = 30
# For responses to be written after the answers have been ended.
_GRACE_SECONDS = 15


class Server(uvicorn.Server):
    """On SIGTERM or SIGINT it takes nothing new, lets running answers finish for a while, ends the
    rest with what they have, and then goes. A second signal ends them at once, a third everything.
    """

    def __init__(self, settings: Settings) -> None:
        self.app = create_app(settings)
        self.settings = settings
        self.parts = serving_of(self.app)
        self.stopped_by: int | None = None
        self.failure: MullError | ApiError | None = None
        self._signals = 0
        self._chores: set[asyncio.Task[None]] = set()
        config = uvicorn.Config(
            self.app,
            http=protocol(settings.header_seconds),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=round(settings.shutdown_seconds) + _GRACE_SECONDS,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stopped_by = sig
        self.should_exit = True
        self._signals += 1
        self.force_exit = self._signals > 2

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._do(self._load_default())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        answers, seconds = self.parts.answers, self.settings.shutdown_seconds
        if self.failure is None:
            note("shutting down", running=len(answers.running), waits_s=seconds)
        self._do(answers.close(seconds))
        if (pulls := getattr(self.app.state, "pulls", None)) is not None:
            self._do(pulls.close())  # whose followers would be waited for
        self._do(self._hurry())
        await super().shutdown(sockets)
        for chore in list(self._chores):
            chore.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await chore

    async def _load_default(self) -> None:
        """Before anybody asks; a server whose own model cannot be had is of no use, and ends."""
        name = self.parts.pool.default
        try:
            await self.parts.pool.load(name)
        except (MullError, ApiError) as error:
            self.failure, self.should_exit = error, True
        else:
            note("loaded", model=name)

    async def _hurry(self) -> None:
        while self._signals < 2:
            await asyncio.sleep(0.1)
        for answer in self.parts.answers.running:
            answer.stop("shutdown")

    def _do(self, chore: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


def run(settings: Settings, *, opens_browser: bool = False) -> int:
    """Serve until a signal; the exit code. Raises MullError where it cannot even begin: a port in
    use, a model that is none, a store that cannot be opened, accounts without a key. What is found
    only when the model is loaded is raised when the server has ended for it."""
    set_up(settings.log)
    check_ready(settings)
    server = Server(settings)
    server.parts.pool.check_default()
    listening = listen(settings)
    url = url_of(listening)
    print(f"mull is at {url}", flush=True)
    if opens_browser and sys.stdout.isatty() and _has_desktop():
        threading.Timer(0.5, _open_browser, (url,)).start()
    server.run(sockets=[listening])
    if isinstance(server.failure, ApiError):
        raise RequestError(server.failure.message)
    if server.failure is not None:
        raise server.failure
    if not server.started and server.stopped_by is None:
        raise MullError("the server could not begin: the lines above say why")
    return 130 if server.stopped_by == signal.SIGINT else 0


def listen(settings: Settings) -> socket.socket:
    """The one socket of the server. MullError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        # From here on connections wait in line, and a second server on this port is refused.
        listening.listen(256)
    except OSError as error:
        listening.close()
        raise MullError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}): "
            "stop what uses it, or give another with --port"
        ) from None
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _has_desktop() -> bool:
    """Where there is none, Python would open a browser inside the terminal."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open_browser(url: str) -> None:
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(url)
