"""Server-sent events: how they are written, and a response that notices when its reader leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Annotated, Any

from fastapi import Header, Query
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mull.serve.errors import ApiError

# How long a client may leave what is sent to it unread.
WRITE_SECONDS = 60
AfterNumber = Annotated[int | None, Query(ge=0, le=2**31 - 1)]
LastEventId = Annotated[str | None, Header(max_length=20)]
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def first_number(after: int | None, last_event_id: str | None) -> int:
    """The number of the last event that a reader has; 0 for none."""
    if after is not None or last_event_id is None:
        return after or 0
    if not last_event_id.isdecimal() or not last_event_id.isascii():
        raise ApiError(400, "Last-Event-ID must be a number", param="Last-Event-ID")
    return min(int(last_event_id), 2**31 - 1)


def event(data: Any, *, name: str | None = None, number: int | None = None) -> bytes:
    """One event; data is written as JSON, which has no line breaks."""
    lines = [] if number is None else [f"id: {number}"]
    if name is not None:
        lines.append(f"event: {name}")
    lines.append(f"data: {to_json(data)}")
    return ("\n".join(lines) + "\n\n").encode("utf-8")


def to_json(value: Any) -> str:
    # Half a character (a lone surrogate) cannot be sent, so non-ASCII is only left as it is
    # when it can be encoded.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


class StreamedResponse(Response):
    """Sends what `body` yields; when the client leaves, `body` is closed at once.

    Starlette's own notices a client that has left only when it next sends something.
    """

    def __init__(
        self,
        body: AsyncIterator[bytes],
        *,
        media_type: str = "text/event-stream",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.body_iterator = body
        self.status_code = 200
        self.background = None
        self.media_type = media_type
        self.init_headers(
            {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(until_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not sending.done():
                sending.cancel()
            with suppress(asyncio.CancelledError, TimeoutError):
                await sending

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async with aclosing(self.body_iterator) as body:  # type: ignore[type-var]
            async for piece in body:
                if piece:
                    async with asyncio.timeout(WRITE_SECONDS):  # a client that does not read
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_disconnect(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
