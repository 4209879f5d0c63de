"""One sample's way from token ids to what the caller sees: pieces of text, and how it ended.

The engine pushes tokens in; out come events, and the wish to close the thinking. Stop strings,
limits, loops and the bookkeeping of the final Output live here.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from mull.engine.grammar import Constraint
from mull.engine.request import (
    Event,
    FinishReason,
    Kind,
    Output,
    Request,
    Timing,
    TokenLogprob,
    ToolCall,
    Usage,
)
from mull.engine.sequence import Sequence
from mull.engine.stop_strings import StopStrings
from mull.engine.thinking import CloseReason, LoopDetector, ThinkingControl
from mull.text.stream import Piece, StreamParser
from mull.text.tokenizer import Tokenizer

# Enough of the thinking's end to see whether a sentence has just ended.
_TAIL = 16


class Reply:
    """What has been said so far by one sequence, and whether it should go on.

    ends: ids that end the answer. limit: tokens (prompt included) that the context holds.
    """

    def __init__(
        self,
        seq: Sequence,
        request: Request,
        parser: StreamParser,
        tokenizer: Tokenizer,
        *,
        ends: frozenset[int],
        limit: int,
        submitted: float,
    ) -> None:
        self.seq = seq
        self.sampling = request.sampling
        self.parser = parser
        self.tokenizer = tokenizer
        self.control = ThinkingControl(request.think_budget)
        self.loops = LoopDetector() if request.detect_loops else None
        self.stops = StopStrings(request.sampling.stop)
        self.ends = frozenset() if request.sampling.ignore_eos else ends
        self.stop_ids = frozenset(request.sampling.stop_token_ids)
        room = limit - seq.prompt_length
        wanted = request.sampling.max_tokens
        self.max_tokens = room if wanted is None else min(wanted, room)
        self.is_cut_by_context = wanted is None or wanted > room
        self.finish_reason: FinishReason | None = None
        self.details: dict[str, Any] = {}
        self.forced_positions: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self._texts: dict[str, list[str]] = {"thinking": [], "answer": []}
        self._tool_calls: list[ToolCall] = []
        self._thinks_in_circles = False
        self._tail = ""
        self._closing_tokens = self._thought = 0
        needs_text = request.think_budget is not None or request.detect_loops
        needs_text = needs_text or bool(request.sampling.stop) or request.grammar is not None
        self.reads_at_end = not (request.streams or needs_text)
        self._unread: list[int] = []
        self._unsent: list[Event] = []
        self._new_ids: list[int] = []
        self._new_logprobs: list[TokenLogprob] = []
        self._submitted = submitted
        self._first_token: float | None = None
        self._last_token: float | None = None

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def watched(self) -> frozenset[int]:
        """Tokens after which no other is wanted."""
        return self.ends | self.stop_ids

    @property
    def tokens_left(self) -> int:
        """How many more it may have at most."""
        return self.max_tokens - self.seq.generated

    def push(
        self, token_id: int, logprob: TokenLogprob | None, *, is_forced: bool = False
    ) -> list[Event]:
        """Take the token that has just been appended to the sequence."""
        self._note(token_id, logprob, is_forced)
        if not is_forced and self._is_end(token_id):
            return self._finish("stop")
        if self.reads_at_end:
            self._unread.append(token_id)
            return self._finish_if_full()
        was_thinking = self.parser.is_thinking
        events = self._show(self.parser.push(token_id))
        if was_thinking and self.parser.is_thinking:
            self._note_tail([token_id])
        if self.is_finished:
            return events + self._finish("stop")
        if self.seq.constraint is not None:
            self._follow(self.seq.constraint, token_id, is_forced)
            if self.is_finished:
                return events + self._finish(self.finish_reason or "stop")
        events += self._finish_if_full()
        if self.is_finished:
            return events
        if self._is_endless_answer(token_id, is_forced):
            return events + self._finish("length")
        return events

    def reason_to_close(self) -> CloseReason | None:
        """Why the thinking must be closed before anything else is sampled, if so."""
        if self.is_finished or (self.reads_at_end and not self.control.wants_answer):
            return None
        self._read()
        if not self.parser.is_thinking:
            self.control.wants_answer = False  # the model was faster
            return None
        if self._thinks_in_circles:
            return "loop"
        return self.control.reason_to_close(self.thinking_tokens, self._tail)

    def answer_now(self) -> None:
        """Wish for the thinking's end; nothing happens where there is no thinking now."""
        self._read()
        self.control.wants_answer = self.parser.is_thinking

    def ends_too_early(self, token_id: int) -> bool:
        """Whether the token would end the thinking's turn with the grammar still to be followed."""
        is_end = token_id in self.ends and token_id not in self.stop_ids
        return is_end and self.seq.constraint is not None and self.parser.is_thinking

    @property
    def is_mid_line(self) -> bool:
        return bool(self._tail) and not self._tail.endswith("\n")

    @property
    def thinking_tokens(self) -> int:
        """What the model thought, without what the engine put there to close it."""
        self._read()
        return self.parser.thinking_tokens - self._closing_tokens

    def closing(self, reason: CloseReason) -> None:
        """The closing tokens are about to be pushed."""
        self._thought = self.thinking_tokens
        self.details["thinking_closed"] = {"reason": reason, "thinking_tokens": self._thought}

    def closed(self) -> None:
        """The closing tokens have been pushed."""
        self._closing_tokens += self.thinking_tokens - self._thought
        self.control.wants_answer = self._thinks_in_circles = False
        if self.loops is not None:
            self.loops.forget()

    def cancel(self) -> list[Event]:
        return self._finish("cancelled")

    def _note_tail(self, ids: list[int]) -> None:
        """The parser may still hold their text back, so the tokens are asked for it."""
        text = b"".join(map(self.tokenizer.token_bytes, ids)).decode("utf-8", "replace")
        self._tail = (self._tail + text)[-_TAIL:]

    def _finish_if_full(self) -> list[Event]:
        if self.seq.generated < self.max_tokens:
            return []
        if self.is_cut_by_context:
            self.details["context_full"] = True
        return self._finish("length")

    def _read(self) -> None:
        """Take in what nobody has asked for yet; what is to be shown of it comes at the end."""
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        self._note_tail(unread[-_TAIL:])
        self._unsent += self._show(self.parser.push_all(unread))

    def _note(self, token_id: int, logprob: TokenLogprob | None, is_forced: bool) -> None:
        now = time.perf_counter()
        if self._first_token is None:
            self._first_token = now
        self._last_token = now
        if is_forced:
            self.forced_positions.append(self.seq.generated - 1)
        if self.sampling.logprobs is not None:
            known = logprob or TokenLogprob(token_id, None)
            self.logprobs.append(known)
            self._new_logprobs.append(known)
        self._new_ids.append(token_id)

    def _follow(self, constraint: Constraint, token_id: int, is_forced: bool) -> None:
        constraint.push(token_id, is_thinking=self.parser.is_thinking, is_forced=is_forced)
        if constraint.fault:
            self.details["grammar_fault"] = constraint.fault
            self.finish_reason = "length"
        elif constraint.is_complete:
            self.finish_reason = "stop"

    def _is_end(self, token_id: int) -> bool:
        if token_id in self.stop_ids:
            self.details["stop_token_id"] = token_id
            return True
        return token_id in self.ends

    def _is_endless_answer(self, token_id: int, is_forced: bool) -> bool:
        if self.loops is None or is_forced:
            return False
        loop = self.loops.push(token_id)
        if loop is None:
            return False
        self._thinks_in_circles = self.parser.is_thinking
        where = "thinking" if self._thinks_in_circles else "answer"
        self.details["loop"] = {"in": where, "period": loop.period, "repeats": loop.repeats}
        return where == "answer"

    def _show(self, pieces: list[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            if piece.kind != "answer":
                events += self._said("answer", self.stops.flush())
                events += self._called(piece) if piece.name else self._said("thinking", piece.text)
                continue
            text, matched = self.stops.push(piece.text)
            events += self._said("answer", text)
            if matched is not None:
                self.details["stop_string"] = matched
                self.finish_reason = "stop"
                break
        return events

    def _said(self, kind: Literal["thinking", "answer"], text: str) -> list[Event]:
        if not text:
            return []
        self._texts[kind].append(text)
        return [self._event(kind, text)]

    def _called(self, piece: Piece) -> list[Event]:
        call = ToolCall(piece.name or "", piece.arguments or "")
        self._tool_calls.append(call)
        return [self._event("tool_call", piece.text, tool_call=call)]

    def _event(self, kind: Kind, text: str = "", **carried: Any) -> Event:
        ids, logprobs = tuple(self._new_ids), tuple(self._new_logprobs)
        self._new_ids, self._new_logprobs = [], []
        seq = self.seq
        return Event(seq.request_id, seq.index, kind, text, ids, logprobs, **carried)

    def _finish(self, reason: FinishReason) -> list[Event]:
        self._read()
        events, self._unsent = self._unsent, []
        if "stop_string" not in self.details:
            events += self._show(self.parser.finish())
            events += self._said("answer", self.stops.flush())
        if "stop_string" in self.details:
            reason = "stop"
        self.finish_reason = reason
        return [*events, self._event("end", output=self._output(reason))]

    def _output(self, reason: FinishReason) -> Output:
        seq = self.seq
        if seq.preemptions:
            self.details["preemptions"] = seq.preemptions
        return Output(
            request_id=seq.request_id,
            index=seq.index,
            thinking="".join(self._texts["thinking"]),
            text="".join(self._texts["answer"]),
            tool_calls=self._tool_calls,
            token_ids=seq.token_ids[seq.prompt_length :],
            forced_positions=self.forced_positions,
            logprobs=self.logprobs if self.sampling.logprobs is not None else None,
            finish_reason=reason,
            finish_details=self.details,
            usage=Usage(
                prompt_tokens=seq.prompt_length,
                cached_tokens=min(seq.cached_tokens or 0, seq.prompt_length),
                reasoning_tokens=self.thinking_tokens,
                completion_tokens=seq.generated,
            ),
            timing=self._timing(),
            prompt_logprobs=None if seq.prompt_tops is None else seq.prompt_logprobs,
        )

    def _timing(self) -> Timing:
        total = time.perf_counter() - self._submitted
        if self._first_token is None or self._last_token is None:
            return Timing(ttft_s=None, tokens_per_s=None, total_s=total)
        decoding = self._last_token - self._first_token
        rate = (self.seq.generated - 1) / decoding if decoding > 0 else None
        return Timing(self._first_token - self._submitted, rate, total)
