"""From an answer's events to chat completions: one object, or a stream of chunks."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import mull
from mull.engine import Event, Output, TokenLogprob, ToolCall
from mull.serve import sse
from mull.serve.answers import Piece, RunningAnswer
from mull.serve.errors import ApiError
from mull.serve.wire.common import finish_reason, usage
from mull.text import Tokenizer

FINGERPRINT = f"mull-{mull.__version__}"
_LEAST_LOGPROB = -9999.0  # JSON has no infinity


@dataclass(frozen=True)
class ChatForm:
    """What of the request shapes the chunks."""

    include_usage: bool
    logprobs: bool


def chat_answer(answer: RunningAnswer) -> dict[str, Any]:
    """The whole chat completion."""
    outputs = [answer.outputs[index] for index in sorted(answer.outputs)]
    return {
        **_head(answer, "chat.completion"),
        "choices": [_choice(answer, output) for output in outputs],
        "usage": usage(outputs),
    }


async def chat_stream(
    answer: RunningAnswer, after: int = 0, *, keep_alive: float
) -> AsyncIterator[bytes]:
    """The chunks, each event's under its number, and [DONE]; keep-alives while nothing comes."""
    writer = _ChunkWriter(answer)
    for piece in answer.pieces[:after]:
        writer.write(piece)  # what the reader has seen already
    async with aclosing(answer.events(after, keep_alive=keep_alive)) as pieces:  # type: ignore[type-var]
        async for new in pieces:
            yield sse.KEEP_ALIVE if new is None else writer.write(new)


def error_chunk(error: ApiError) -> bytes:
    """An error that comes when the stream has begun already."""
    return sse.event(error.body) + sse.DONE


class _ChunkWriter:
    """Writes pieces as chunks; remembers which samples have begun and how many calls they made."""

    def __init__(self, answer: RunningAnswer) -> None:
        self.answer = answer
        form = answer.form
        assert isinstance(form, ChatForm)
        self.form = form
        self.calls: dict[int, int] = {}

    def write(self, piece: Piece) -> bytes:
        if piece.error is not None:
            return error_chunk(piece.error)
        chunks = [] if piece.event is None else self._chunks(piece.event)
        if piece.last and self.form.include_usage:
            outputs = [self.answer.outputs[i] for i in sorted(self.answer.outputs)]
            chunks.append({**self._head(), "choices": [], "usage": usage(outputs)})
        # Only the last chunk of an event carries its number: whoever has it has them all.
        numbers = [None] * (len(chunks) - 1) + [piece.number]
        raw = b"".join(sse.event(c, number=n) for c, n in zip(chunks, numbers, strict=True))
        return raw + sse.DONE if piece.last else raw

    def _chunks(self, event: Event) -> list[dict[str, Any]]:
        chunks = []
        if event.index not in self.calls:
            self.calls[event.index] = 0
            chunks.append(self._chunk(event.index, {"role": "assistant", "content": ""}))
        delta: dict[str, Any] = {}
        if event.kind == "thinking":
            delta = {"reasoning_content": event.text}
        elif event.kind == "answer":
            delta = {"content": event.text}
        elif event.tool_call is not None:
            number = self.calls[event.index]
            self.calls[event.index] += 1
            call = tool_call(self.answer, event.index, number, event.tool_call)
            delta = {"tool_calls": [{"index": number, **call}]}
        finish = None if event.output is None else finish_reason(self.answer, event.output)
        chunk = self._chunk(event.index, delta, finish)
        if self.form.logprobs:
            name = "reasoning_content" if event.kind == "thinking" else "content"
            listed = logprob_entries(event.logprobs, self.answer.tokenizer)
            chunk["choices"][0]["logprobs"] = {name: listed} if listed else None
        return [*chunks, chunk]

    def _chunk(
        self, index: int, delta: dict[str, Any], finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head(), "choices": [choice]}

    def _head(self) -> dict[str, Any]:
        head = _head(self.answer, "chat.completion.chunk")
        return head | {"usage": None} if self.form.include_usage else head


def _head(answer: RunningAnswer, kind: str) -> dict[str, Any]:
    return {
        "id": answer.id,
        "object": kind,
        "created": int(answer.created),
        "model": answer.model,
        "system_fingerprint": FINGERPRINT,
    }


def _choice(answer: RunningAnswer, output: Output) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "reasoning_content": output.thinking or None,
        "content": output.text if output.text or not output.tool_calls else None,
    }
    if output.tool_calls:
        message["tool_calls"] = [
            tool_call(answer, output.index, number, call)
            for number, call in enumerate(output.tool_calls)
        ]
    logprobs = None
    if answer.form.logprobs:
        logprobs = _all_logprobs(answer, output.index)
    return {
        "index": output.index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": finish_reason(answer, output),
    }


def tool_call(answer: RunningAnswer, index: int, number: int, call: ToolCall) -> dict[str, Any]:
    """Its id follows from the answer's, so that a resumed stream names it alike."""
    secret = answer.id.partition("-")[2]  # which may hold dashes itself
    return {
        "id": f"call_{secret}_{index}_{number}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _all_logprobs(answer: RunningAnswer, index: int) -> dict[str, Any]:
    tokenizer = answer.tokenizer
    listed: dict[str, list[dict[str, Any]]] = {"content": [], "reasoning_content": []}
    for piece in answer.pieces:
        if piece.event is not None and piece.event.index == index:
            name = "reasoning_content" if piece.event.kind == "thinking" else "content"
            listed[name] += logprob_entries(piece.event.logprobs, tokenizer)
    return listed


def logprob_entries(logprobs: Iterable[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """OpenAI's form. Left out: control tokens, and what the engine itself put there."""
    return [
        {
            **_entry(known.token_id, known.logprob, tokenizer),
            "top_logprobs": [_entry(token, value, tokenizer) for token, value in known.top],
        }
        for known in logprobs
        if known.logprob is not None and not tokenizer.is_control(known.token_id)
    ]


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LEAST_LOGPROB


def _entry(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    value = finite(logprob)
    return {"token": raw.decode("utf-8", "replace"), "logprob": value, "bytes": list(raw)}
