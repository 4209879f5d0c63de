"""/api/answers/{id}: follow an answer from any point, stop it, or have it answer at once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from mull.serve import sse
from mull.serve.answers import Piece, RunningAnswer
from mull.serve.api.fields import AnOwner, TheServing

router = APIRouter(prefix="/answers/{id}")

PROGRESS_SECONDS = 0.25


@router.get("/events", response_class=Response)
async def follow(
    id: str,
    owner: AnOwner,
    parts: TheServing,
    after: sse.AfterNumber = None,
    last_event_id: sse.LastEventId = None,
) -> Response:
    """Its events as they come, those with a number above `after` (or Last-Event-ID) only."""
    answer = parts.answers.get(owner, id)
    number = sse.first_number(after, last_event_id)
    body = _events(answer, number, keep_alive=parts.settings.keep_alive_seconds)
    return sse.StreamedResponse(body)


@router.post("/stop", status_code=204)
async def stop(id: str, owner: AnOwner, parts: TheServing) -> None:
    """End it with what there is."""
    parts.answers.get(owner, id).stop()


@router.post("/answer-now", status_code=204)
async def answer_now(id: str, owner: AnOwner, parts: TheServing) -> None:
    """Close its thinking and go on to the answer."""
    parts.answers.get(owner, id).answer_now()


async def _events(answer: RunningAnswer, after: int, *, keep_alive: float) -> AsyncIterator[bytes]:
    """Progress comes between the events, without a number: it is not worth repeating. What an
    answer goes on with comes before its first.
    """
    if after == 0 and answer.before is not None:
        yield sse.event(answer.before, name="before")
    told, quiet = 0.0, 0.0
    shown: dict[str, Any] = {}
    async with aclosing(answer.events(after, keep_alive=PROGRESS_SECONDS)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            moment = time.monotonic()
            progress = _progress(answer)
            if progress != shown and moment - told >= PROGRESS_SECONDS and not answer.is_finished:
                told, shown = moment, progress
                yield sse.event(progress, name="progress")
            if piece is not None:
                quiet = moment
                yield _written(answer, piece)
            elif moment - max(quiet, told) >= keep_alive:
                quiet = moment
                yield sse.KEEP_ALIVE


def _progress(answer: RunningAnswer) -> dict[str, Any]:
    progress = {
        "thinking_tokens": answer.thinking_tokens,
        "completion_tokens": answer.completion_tokens,
    }
    position = answer.queue_position
    return progress | {"queue_position": position} if position else progress


def _written(answer: RunningAnswer, piece: Piece) -> bytes:
    event = piece.event
    if piece.error is not None:
        told = piece.error.body | {"message": answer.result}
        return sse.event(told, name="error", number=piece.number)
    if event is None or piece.last:
        return sse.event({"message": answer.result}, name="end", number=piece.number)
    if event.tool_call is not None:
        call = {"name": event.tool_call.name, "arguments": event.tool_call.arguments}
        return sse.event(call, name="tool_call", number=piece.number)
    if event.kind == "end":  # of one sample of several
        return b""
    return sse.event({"text": event.text}, name=event.kind, number=piece.number)
