"""How large a body may be, how deep its JSON, and how long it may take to arrive.

A body is read here, whole or up to its limit, and looked at as bytes; only what is harmless is
parsed.
"""

from __future__ import annotations

import asyncio
import re

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mull.serve.errors import ApiError, error_response
from mull.serve.settings import Settings

# Routes that take files, which are checked as they are read; their limits, among the settings.
UPLOADS = {"/api/files": "max_upload_bytes", "/api/import": "max_import_bytes"}
# Where accounts are on, more of a body is read only from who has a key.
_FROM_ANYBODY = 64 * 1024
# Brackets and commas outside of strings: every value costs Python some hundred bytes.
MAX_VALUES = 500_000
_IN_A_THREAD = 100_000
_ESCAPES = re.compile(rb"\\.", re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class BodyGuard:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self._held = 0  # bytes of all bodies under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        pieces: list[bytes] = []
        try:
            await self._guarded(scope, receive, send, pieces)
        finally:
            self._held -= sum(map(len, pieces))

    async def _guarded(
        self, scope: Scope, receive: Receive, send: Send, pieces: list[bytes]
    ) -> None:
        named = UPLOADS.get(scope["path"].rstrip("/"))
        limit = getattr(self.settings, named or "max_body_bytes")
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                is_whole = await self._read(scope, receive, limit, pieces)
        except TimeoutError:
            seconds = self.settings.body_seconds
            error = ApiError(408, f"the request's body took longer than {seconds:g} seconds")
            await _refuse(error, scope, receive, send)
            return
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        if not is_whole:
            return  # the client has left
        body = b"".join(pieces)
        pieces[:] = [body]
        if named is None:
            complaint = await self._complaint(body)
            if complaint is not None:
                await _refuse(complaint, scope, receive, send)
                return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive, limit: int, pieces: list[bytes]) -> bool:
        """False where the client leaves before the end."""
        stated = Headers(scope=scope).get("content-length", "")
        too_large = ApiError(413, f"the request's body may have {limit:,} bytes at most")
        if stated.isdecimal() and (len(stated) > 15 or int(stated) > limit):
            raise too_large
        is_known = not self.settings.accounts
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            piece = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise too_large
            if size > _FROM_ANYBODY and not is_known:
                await scope["app"].state.gate.key_in(Request(scope))
                is_known = True
            self._held += len(piece)
            pieces.append(piece)
            if self._held > self.settings.max_bodies_bytes:
                raise ApiError(503, "too much is being sent at once: try again", retry_after=5)
            if not message.get("more_body", False):
                return True

    async def _complaint(self, body: bytes) -> ApiError | None:
        deepest = self.settings.max_nesting
        if len(body) < _IN_A_THREAD:
            return json_complaint(body, deepest)
        return await asyncio.to_thread(json_complaint, body, deepest)


def json_complaint(body: bytes, deepest: int) -> ApiError | None:
    """What makes JSON too costly to parse, in time linear in its length; None for nothing."""
    if b"\0" in body:
        return ApiError(400, "the body holds NUL bytes: send JSON in UTF-8")
    # Without escapes every quotation mark opens or closes a string.
    outside = b"".join(_ESCAPES.sub(b"", body).split(b'"')[::2])
    if sum(outside.count(mark) for mark in (b"[", b"{", b",")) > MAX_VALUES:
        return ApiError(413, f"the body's JSON may hold {MAX_VALUES:,} values at most")
    depth = 0
    for bracket in outside.translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > deepest:
            return ApiError(400, f"the body's JSON is nested more than {deepest} deep")
    return None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and then what really comes: the client's leaving."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(scope["path"], error)
    # What is left of the body is not read, so the connection is of no further use.
    response.headers["Connection"] = "close"
    await response(scope, receive, send)
