"""Whether, for whom and how far to guess ahead in a step, and where the guesses come from.

A step over more rows takes longer; a right guess saves its sequence a whole step. Both sides are
measured: the cost of a step by its rows (StepCosts), and how often guesses of each kind are right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast, get_args

from mull.engine.lookup import PromptLookup
from mull.engine.scheduler import Chunk, Scheduler
from mull.engine.sequence import Sequence
from mull.engine.step_costs import StepCosts
from mull.errors import RequestError

Mode = Literal["auto", "off", "ngram"]

# Of one sequence in one step. Beyond it even sure guesses add little to the rate.
MAX_DRAFT = 15
# Guesses less likely than this are not worth a look.
_LEAST_CHANCE = 0.1
# What a draft must promise: the estimates err, and a loss weighs more than a small gain.
_LEAST_GAIN = 1.05


class Speculation:
    """Puts drafts on the chunks of a step. Never changes what is generated, only how fast.

    mode: ngram looks for the end of a sequence earlier in it (PromptLookup), off guesses nothing,
    auto is ngram.
    """

    def __init__(self, scheduler: Scheduler, *, mode: Mode) -> None:
        self.mode = check_mode(mode)
        self.costs = StepCosts()
        self.new_lookup = PromptLookup
        self.drafted = 0
        self.accepted = 0
        self._blocks = scheduler.blocks
        self._max_rows = scheduler.max_batch_tokens
        self._is_decode = False
        self._lookups: dict[Sequence, PromptLookup] = {}

    def propose(self, chunks: list[Chunk], tokens_left: Callable[[Sequence], int]) -> None:
        """Extend the chunks by drafts where that pays; tokens_left: in an answer at most."""
        # Beside a prompt a step is bound by arithmetic: rows cost what they bring.
        self._is_decode = self.mode != "off" and all(chunk.seq.is_decoding for chunk in chunks)
        rows = sum(chunk.count for chunk in chunks)
        if not self._is_decode or not self._could_pay(rows, len(chunks)):
            return
        guesses: list[tuple[float, int]] = []
        for i, chunk in enumerate(chunks):
            seq = chunk.seq
            if not seq.speculate or seq.siblings or not chunk.reaches_end:
                continue
            lookup = self._lookups.get(seq)
            if lookup is None:
                lookup = self._lookups[seq] = self.new_lookup(seq.token_ids, seq.prompt_length)
            if lookup.catch_up():
                most = min(MAX_DRAFT, tokens_left(seq) - 1, self._room(chunk))
                guesses += [(chance, i) for chance in lookup.chances(most, least=_LEAST_CHANCE)]
        for i, length in self._best(guesses, rows, len(chunks)).items():
            self._extend(chunks[i], length)

    def learn(self, chunks: list[Chunk], seconds: float) -> None:
        """What the step took for which drafts were last proposed."""
        if self._is_decode:
            self.costs.observe(sum(chunk.rows for chunk in chunks), seconds)

    def drop(self, seq: Sequence) -> None:
        self._lookups.pop(seq, None)

    def _could_pay(self, rows: int, ends: int) -> bool:
        """Whether sure guesses would: if not, nobody need be asked for any."""
        rate = _LEAST_GAIN * ends / self.costs.cost(rows)
        return any(
            rows + more <= self._max_rows and (ends + more) / self.costs.cost(rows + more) >= rate
            for more in (ends, 4 * ends, MAX_DRAFT * ends)
        )

    def _best(self, guesses: list[tuple[float, int]], rows: int, ends: int) -> dict[int, int]:
        """Length of the draft by chunk: the likeliest guesses, as many as bring most tokens a
        second."""
        best, best_count, expected = _LEAST_GAIN * ends / self.costs.cost(rows), 0, float(ends)
        # Stable, and chances fall along a draft: each guess comes after those it builds on.
        guesses = sorted(guesses, key=lambda guess: -guess[0])[: self._max_rows - rows]
        for count, (chance, _) in enumerate(guesses, 1):
            expected += chance
            rate = expected / self.costs.cost(rows + count)
            if rate > best:
                best, best_count = rate, count
        lengths: dict[int, int] = {}
        for _, i in guesses[:best_count]:
            lengths[i] = lengths.get(i, 0) + 1
        return lengths

    def _extend(self, chunk: Chunk, length: int) -> None:
        length = min(length, self._room(chunk))  # drafts before this one have taken blocks
        if length > 0:
            chunk.draft = self._lookups[chunk.seq].propose(length)
            self._blocks.append(chunk.seq, chunk.rows)
            self.drafted += length

    def _room(self, chunk: Chunk) -> int:
        return self._blocks.room(chunk.seq) - chunk.count


def check_mode(mode: str) -> Mode:
    """Raises RequestError for what is no Mode."""
    if not isinstance(mode, str) or mode not in get_args(Mode):
        raise RequestError(f"speculation is {mode!r}: use one of {', '.join(get_args(Mode))}")
    return cast(Mode, mode)
