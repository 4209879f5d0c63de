"""How large a body may be, how deep its JSON, and how long it may take to arrive.

A body is read here, whole or up to its limit, and looked at as bytes; only what is harmless is
parsed.
"""

from __future__ import annotations

import asyncio
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mull.serve.errors import ApiError, error_response
from mull.serve.settings import Settings

# Routes that take files, which are checked as they are read.
UPLOADS = ("/api/files", "/api/import")
# Brackets and commas outside of strings: every value costs Python some hundred bytes.
MAX_VALUES = 500_000
_IN_A_THREAD = 100_000
_ESCAPES = re.compile(rb"\\.", re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class BodyGuard:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        is_upload = scope["path"].rstrip("/") in UPLOADS
        limit = self.settings.max_upload_bytes if is_upload else self.settings.max_body_bytes
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                body = await self._read(scope, receive, limit)
        except TimeoutError:
            seconds = self.settings.body_seconds
            error = ApiError(408, f"the request's body took longer than {seconds:g} seconds")
            await _refuse(error, scope, receive, send)
            return
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        if body is None:
            return  # the client has left
        if not is_upload:
            complaint = await self._complaint(body)
            if complaint is not None:
                await _refuse(complaint, scope, receive, send)
                return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive, limit: int) -> bytes | None:
        stated = Headers(scope=scope).get("content-length", "")
        too_large = ApiError(413, f"the request's body may have {limit:,} bytes at most")
        if stated.isdecimal() and (len(stated) > 15 or int(stated) > limit):
            raise too_large
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise too_large
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)

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
