"""From an answer's events to a Response: its items, and the numbered events of its stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from mull.engine import Event
from mull.serve import sse
from mull.serve.answers import Piece, RunningAnswer
from mull.serve.wire.chat_answer import logprob_entries


def response_answer(answer: RunningAnswer) -> dict[str, Any]:
    """The response as it is by now."""
    writer = _Writer(answer)
    for piece in answer.pieces:
        for _ in writer.take(piece):
            pass
    return writer.response()


async def response_stream(
    answer: RunningAnswer, *, after: int | None = None, keep_alive: float
) -> AsyncIterator[bytes]:
    """The events with a sequence number above `after`; they are the same whenever they are read."""
    writer = _Writer(answer)
    last = -1 if after is None else after
    yield _written(writer.begin(), last)
    async with aclosing(answer.events(keep_alive=keep_alive)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            yield sse.KEEP_ALIVE if piece is None else _written(writer.take(piece), last)


def _written(events: Iterator[dict[str, Any]], last: int) -> bytes:
    return b"".join(
        sse.event(event, name=event["type"]) for event in events if event["sequence_number"] > last
    )


class _Writer:
    """Items as they grow, and the events that tell of it.

    Of the item that is open, `_part` is the part that grows.
    """

    def __init__(self, answer: RunningAnswer) -> None:
        self.answer = answer
        self.items: list[dict[str, Any]] = []
        self._part: dict[str, Any] | None = None
        self._number = 0
        self._status = "in_progress"

    def begin(self) -> Iterator[dict[str, Any]]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self.response(is_beginning=True))

    def take(self, piece: Piece) -> Iterator[dict[str, Any]]:
        event = piece.event
        if event is not None and event.kind == "thinking" and event.text:
            yield from self._add("reasoning", event)
        elif event is not None and event.kind == "answer" and event.text:
            yield from self._add("message", event)
        elif event is not None and event.tool_call is not None:
            yield from self._close("completed")
            yield from self._call(event)
        if piece.last:
            self._status = self._end(piece)
            yield from self._close("completed" if self._status == "completed" else "incomplete")
            kind = self._status if self._status != "cancelled" else "incomplete"
            yield self._event(f"response.{kind}", response=self.response())

    def response(self, *, is_beginning: bool = False) -> dict[str, Any]:
        answer, form = self.answer, self.answer.form
        status = "in_progress" if is_beginning else self._status
        is_over = status != "in_progress"
        error = answer.error
        text = form.get("text") or {}
        return {
            "id": answer.id,
            "object": "response",
            "created_at": int(answer.created),
            "completed_at": int(answer.ended) if is_over and answer.ended else None,
            "status": status,
            "background": bool(form.get("background")),
            "error": None
            if error is None or not is_over
            else {"code": "server_error", "message": error.message},
            "incomplete_details": {"reason": "max_output_tokens"}
            if status == "incomplete"
            else None,
            "instructions": form.get("instructions"),
            "max_output_tokens": form.get("max_output_tokens"),
            "metadata": form.get("metadata") or {},
            "model": answer.model,
            "output": [] if is_beginning else self.items,
            "parallel_tool_calls": form.get("parallel_tool_calls") is not False,
            "previous_response_id": form.get("previous_response_id"),
            "reasoning": form.get("reasoning") or {"effort": None, "summary": None},
            "store": form.get("store") is not False,
            "temperature": form.get("temperature"),
            "text": {**text, "format": text.get("format") or {"type": "text"}},
            "tool_choice": form.get("tool_choice") or "auto",
            "tools": form.get("tools") or [],
            "top_p": form.get("top_p"),
            "truncation": "disabled",
            "usage": self._usage() if is_over else None,
            "user": form.get("user"),
        }

    def _end(self, piece: Piece) -> str:
        if piece.error is not None:
            return "failed"
        output = self.answer.output
        if output is None or output.finish_reason == "cancelled":
            return "cancelled"
        return "incomplete" if output.finish_reason == "length" else "completed"

    def _usage(self) -> dict[str, Any] | None:
        if self.answer.output is None:
            return None
        usage = self.answer.output.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _add(self, kind: str, event: Event) -> Iterator[dict[str, Any]]:
        """More text for the open item, which is begun if it is not of this kind."""
        name = "reasoning_text" if kind == "reasoning" else "output_text"
        if self._part is None or self.items[-1]["type"] != kind:
            yield from self._close("completed")
            yield from self._open(kind, name)
        assert self._part is not None
        self._part["text"] += event.text
        more: dict[str, Any] = {}
        if kind == "message":
            more["logprobs"] = logprob_entries(event.logprobs, self.answer.tokenizer)
            self._part["logprobs"] += more["logprobs"]
        yield self._item_event(f"response.{name}.delta", content_index=0, delta=event.text, **more)

    def _open(self, kind: str, name: str) -> Iterator[dict[str, Any]]:
        item: dict[str, Any] = {"id": self._item_id(kind), "type": kind, "status": "in_progress"}
        if kind == "reasoning":
            item["summary"] = []
        else:
            item["role"] = "assistant"
        self._part = {"type": name, "text": ""}
        if kind == "message":
            self._part |= {"annotations": [], "logprobs": []}
        self.items.append({**item, "content": [self._part]})
        yield self._added({**item, "content": []})
        yield self._item_event(
            "response.content_part.added", content_index=0, part=_copy(self._part)
        )

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        if self._part is None:
            return
        part, self._part = self._part, None
        self.items[-1]["status"] = status
        more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        yield self._item_event(
            f"response.{part['type']}.done", content_index=0, text=part["text"], **more
        )
        yield self._item_event("response.content_part.done", content_index=0, part=part)
        yield self._done()

    def _call(self, event: Event) -> Iterator[dict[str, Any]]:
        call = event.tool_call
        assert call is not None
        secret = self.answer.id.partition("-")[2]
        item = {
            "id": self._item_id("function_call"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": f"call_{secret}_{len(self.items)}",
            "name": call.name,
            "arguments": "",
        }
        self.items.append({**item, "status": "completed", "arguments": call.arguments})
        yield self._added(item)
        name = "response.function_call_arguments"
        yield self._item_event(f"{name}.delta", delta=call.arguments)
        yield self._item_event(f"{name}.done", arguments=call.arguments, name=call.name)
        yield self._done()

    def _item_id(self, kind: str) -> str:
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        return f"{prefix}_{self.answer.id.partition('-')[2]}_{len(self.items)}"

    def _added(self, item: dict[str, Any]) -> dict[str, Any]:
        index = len(self.items) - 1
        return self._event("response.output_item.added", output_index=index, item=item)

    def _done(self) -> dict[str, Any]:
        index = len(self.items) - 1
        return self._event(
            "response.output_item.done", output_index=index, item=dict(self.items[-1])
        )

    def _item_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **fields}


def _copy(part: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in part.items()}
