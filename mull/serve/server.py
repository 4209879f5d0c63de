"""One process that listens: the socket, the signals, and the line that says where it is."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import webbrowser

import uvicorn

from mull.errors import MullError
from mull.serve.accounts.gate import check_ready
from mull.serve.app import create_app
from mull.serve.settings import Settings


def run(settings: Settings, *, opens_browser: bool = False) -> int:
    """Serve until SIGINT or SIGTERM; the exit code. MullError where the port cannot be had."""
    check_ready(settings)
    app = create_app(settings)
    listening = listen(settings)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    url = url_of(listening)
    print(f"mull is at {url}", flush=True)
    if opens_browser and sys.stdout.isatty():
        threading.Timer(0.3, open_browser, (url,)).start()
    server.run(sockets=[listening])
    return 0


def listen(settings: Settings) -> socket.socket:
    """The one socket of the server."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
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


def open_browser(url: str) -> None:
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(url)
