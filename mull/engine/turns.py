"""Who draws a token from a step's logits, and from which of their rows."""

from __future__ import annotations

from typing import NamedTuple

from mull.engine.mtp import Fork
from mull.engine.scheduler import Chunk, Scheduler
from mull.engine.sequence import Sequence


class Turn(NamedTuple):
    """A sequence draws a token from logits row `row`, and one more after each token of `draft`."""

    seq: Sequence
    row: int
    draft: list[int]

    @property
    def rows(self) -> range:
        return range(self.row, self.row + 1 + len(self.draft))


def find_turns(
    scheduler: Scheduler, chunks: list[Chunk]
) -> tuple[list[Turn], list[Fork], list[tuple[int, int]]]:
    """Everyone who draws from the step's logits: the ended chunks' sequences, and siblings.

    Also the siblings as forks, and the (from, to) block copies they need before the next step.
    """
    turns: list[Turn] = []
    siblings: list[Turn] = []
    forks: list[Fork] = []
    copies: list[tuple[int, int]] = []
    row = 0
    for chunk in chunks:
        if not chunk.reaches_end:
            continue
        parent = chunk.seq
        turns.append(Turn(parent, row, chunk.draft))
        if parent.siblings:
            forked, needed = scheduler.fork(parent)
            copies += needed
            siblings += [Turn(seq, row, []) for seq in forked]
            last = parent.computed - 1
            forks += [Fork(seq, parent, seq.block_table, last) for seq in forked]
        row += 1 + len(chunk.draft)
    return turns + siblings, forks, copies


def rows_wanted(chunks: list[Chunk]) -> list[int]:
    """The step's rows after which something is drawn: see Engine._logits."""
    wanted: list[int] = []
    end = 0
    for chunk in chunks:
        end += chunk.rows
        if chunk.reaches_end:
            wanted += range(end - len(chunk.draft) - 1, end)
    return wanted
