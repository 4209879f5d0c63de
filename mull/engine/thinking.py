"""Keeping a request's thinking in hand: hard budgets, "answer now", and endless loops.

A budget is a promise to whoever pays for the tokens, so it holds per request and to within a tenth;
within that tenth the thinking may still finish its sentence.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mull.text.stream import sentence_end

CloseReason = Literal["budget", "answer_now", "loop", "ended"]

# A loop is this many tokens at least, made of this many repeats of one period.
LOOP_TOKENS, LOOP_REPEATS = 256, 8
# How far back to look; longer periods than an eighth of it are not found.
LOOP_WINDOW = 4096
# Looking costs some microseconds, so not at every token.
LOOP_EVERY = 32


@dataclass(frozen=True)
class Loop:
    """The last period * repeats tokens say the same `period` tokens again and again."""

    period: int
    repeats: int


class ThinkingControl:
    """Decides after each thinking token whether the thinking is to be closed now."""

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self.wants_answer = False

    def reason_to_close(self, thinking_tokens: int, text: str) -> CloseReason | None:
        """thinking_tokens: so far. text: the thinking's last characters."""
        if self.wants_answer:
            return "answer_now"
        if self.budget is None or thinking_tokens < self.budget:
            return None
        # In whole numbers: at most a tenth over, rounded down, so that the tenth is kept too.
        is_spent = thinking_tokens >= self.budget + self.budget // 10
        return "budget" if is_spent or sentence_end(text) else None


class LoopDetector:
    """Watches one sequence's tokens; `push` returns the loop it has fallen into, if any."""

    def __init__(self) -> None:
        self._tail = array("i")
        self._since_look = 0

    def push(self, token_id: int) -> Loop | None:
        self._tail.append(token_id)
        self._since_look += 1
        if self._since_look < LOOP_EVERY or len(self._tail) < LOOP_TOKENS:
            return None
        self._since_look = 0
        if len(self._tail) > 2 * LOOP_WINDOW:
            del self._tail[:-LOOP_WINDOW]
        return find_loop(self._tail)

    def forget(self) -> None:
        """What comes next is judged on its own (the thinking has just been closed)."""
        self._tail = array("i")


def find_loop(ids: Ids[int] | array[int]) -> Loop | None:
    """The shortest period that the end of `ids` repeats often and long enough to be a loop."""
    tail = np.array(ids[-LOOP_WINDOW:], dtype=np.int32)
    size = len(tail)
    if size < LOOP_TOKENS:
        return None
    longest = size // LOOP_REPEATS
    # A period must at least bring the last token round again.
    earlier = tail[size - 1 - longest : size - 1]
    for back in np.flatnonzero(earlier[::-1] == tail[-1]):
        period = int(back) + 1
        needed = max(LOOP_TOKENS, LOOP_REPEATS * period)
        if np.array_equal(tail[size - needed + period :], tail[size - needed : size - period]):
            return Loop(period, _length(tail, period) // period)
    return None


def _length(tail: np.ndarray, period: int) -> int:
    differs = np.flatnonzero(tail[period:] != tail[:-period])
    start = int(differs[-1]) + 1 if len(differs) else 0
    return len(tail) - start
