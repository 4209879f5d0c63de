"""From an answer's events to Anthropic's messages: content blocks, whole or streamed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from mull.engine import Event
from mull.serve import sse
from mull.serve.answers import Piece, RunningAnswer
from mull.serve.errors import anthropic_body

PING = sse.event({"type": "ping"}, name="ping")


def message_answer(answer: RunningAnswer) -> dict[str, Any]:
    """The whole message."""
    writer = _BlockWriter(answer)
    for piece in answer.pieces:
        if piece.event is not None:
            writer.take(piece.event)
    writer.close()
    return {**writer.head(), "content": writer.blocks, **_stop(answer), "usage": _usage(answer)}


async def message_stream(answer: RunningAnswer, *, keep_alive: float) -> AsyncIterator[bytes]:
    """message_start, the blocks' events, message_delta and message_stop; pings while queued."""
    writer = _BlockWriter(answer)
    usage = {**_no_usage(), "input_tokens": len(answer.prompt_ids)}
    start = {**writer.head(), "content": [], "stop_reason": None, "stop_sequence": None}
    yield _event("message_start", message={**start, "usage": usage})
    async with aclosing(answer.events(keep_alive=keep_alive)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            yield PING if piece is None else _written(writer, piece)


def _written(writer: _BlockWriter, piece: Piece) -> bytes:
    if piece.error is not None:
        return sse.event(anthropic_body(piece.error), name="error")
    events = [] if piece.event is None else writer.take(piece.event)
    if piece.last:
        events += writer.close()
        events.append(
            _event("message_delta", delta=_stop(writer.answer), usage=_usage(writer.answer))
        )
        events.append(_event("message_stop"))
    return b"".join(events)


class _BlockWriter:
    """Content blocks as they grow, and the stream's events that tell of it."""

    def __init__(self, answer: RunningAnswer) -> None:
        self.answer = answer
        self.blocks: list[dict[str, Any]] = []
        self._is_open = False

    def head(self) -> dict[str, Any]:
        answer = self.answer
        return {"id": answer.id, "type": "message", "role": "assistant", "model": answer.model}

    def take(self, event: Event) -> list[bytes]:
        if event.kind == "thinking" and event.text:
            return self._add("thinking", event.text)
        if event.kind == "answer" and event.text:
            return self._add("text", event.text)
        if event.tool_call is None:
            return []
        events = self.close()
        block = {
            "type": "tool_use",
            "id": f"toolu_{self.answer.id.partition('-')[2]}_{len(self.blocks)}",
            "name": event.tool_call.name,
            "input": json.loads(event.tool_call.arguments),
        }
        self.blocks.append(block)
        events.append(self._block_event("start", content_block={**block, "input": {}}))
        text = event.tool_call.arguments
        events.append(self._delta({"type": "input_json_delta", "partial_json": text}))
        events.append(self._block_event("stop"))
        return events

    def close(self) -> list[bytes]:
        """End the block that is open, if one is."""
        if not self._is_open:
            return []
        self._is_open = False
        block = self.blocks[-1]
        if block["type"] != "thinking":
            return [self._block_event("stop")]
        block["signature"] = signature(block["thinking"])
        signed = self._delta({"type": "signature_delta", "signature": block["signature"]})
        return [signed, self._block_event("stop")]

    def _add(self, kind: str, text: str) -> list[bytes]:
        events: list[bytes] = []
        if not self._is_open or self.blocks[-1]["type"] != kind:
            events = self.close()
            empty = {"signature": ""} if kind == "thinking" else {"citations": None}
            self.blocks.append({"type": kind, kind: "", **empty})
            self._is_open = True
            events.append(self._block_event("start", content_block=dict(self.blocks[-1])))
        self.blocks[-1][kind] += text
        events.append(self._delta({"type": f"{kind}_delta", kind: text}))
        return events

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return self._block_event("delta", delta=delta)

    def _block_event(self, what: str, **fields: Any) -> bytes:
        return _event(f"content_block_{what}", index=len(self.blocks) - 1, **fields)


def signature(thinking: str) -> str:
    """What clients hand back with a thinking block. Nothing is trusted for it: a thinking that
    comes back is text like any other."""
    return "mull:" + hashlib.sha256(thinking.encode("utf-8", "surrogatepass")).hexdigest()


def _event(kind: str, **fields: Any) -> bytes:
    return sse.event({"type": kind, **fields}, name=kind)


def _stop(answer: RunningAnswer) -> dict[str, Any]:
    output = answer.output
    if output is None:
        return {"stop_reason": "end_turn", "stop_sequence": None}
    sequence = output.finish_details.get("stop_string")
    if output.finish_reason == "length":
        is_full = "context_full" in output.finish_details
        reason = "model_context_window_exceeded" if is_full else "max_tokens"
    elif sequence is not None:
        reason = "stop_sequence"
    else:
        reason = "tool_use" if output.tool_calls else "end_turn"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(answer: RunningAnswer) -> dict[str, Any]:
    """input_tokens are those that had to be read; those found in the cache are counted apart."""
    if answer.output is None:
        return _no_usage()
    usage = answer.output.usage
    return {
        **_no_usage(),
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _no_usage() -> dict[str, Any]:
    return {
        "input_tokens": 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
