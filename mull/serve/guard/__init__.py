"""Who may speak to the server at all, and how much: checked before anything is parsed.

Plain ASGI middleware, one subject a file; `Guards` are all of them around an application.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from mull.serve.guard.headers import SecurityHeaders
from mull.serve.guard.hosts import HostGuard
from mull.serve.guard.sizes import BodyGuard
from mull.serve.settings import Settings


class Guards:
    """The application is reached only by what every guard lets through."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = SecurityHeaders(HostGuard(BodyGuard(app, settings), settings))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
