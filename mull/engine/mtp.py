"""Multi-token prediction as a drafter: guesses at the token after the next one (DeepSeek-V3 2.2).

The module's key at position i is made of the model's hidden state there and of token i + 1. So it
is written at the end of the step that computed position i, when token i + 1 is known, drawn or not;
the last row of a sequence then guesses token i + 2. Whatever stands here, it decides only what is
guessed: guesses are checked by the model like any draft (see Speculation).

T rows of a step (packed) · B sequences · D model · V vocabulary
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mull.engine.block_cache import BlockManager
from mull.engine.cache import PagedCache
from mull.engine.guess_loop import GuessedTokens
from mull.engine.guess_rates import GuessRates
from mull.engine.guessing import Guesser, Plan
from mull.engine.mtp_gate import DEEPEST
from mull.engine.paged import PagedSequences
from mull.engine.scheduler import Chunk
from mull.engine.sequence import Sequence
from mull.engine.step_costs import StepCosts
from mull.model.transformer import CausalLM


class Fork(NamedTuple):
    """A sequence that has just taken over its parent's blocks, and drawn a token of its own.

    table, position: its blocks, and the last place computed in them, as they were then; it may have
    given them back since.
    """

    seq: Sequence
    parent: Sequence
    table: array[int]
    position: int


class FollowedStep(NamedTuple):
    """What the model has just computed: hidden_TD is what it gave for the chunks' rows (drafts
    included). copies: blocks that the forks need, made once the keys they share are there."""

    chunks: list[Chunk]
    paged: PagedSequences
    hidden_TD: Tensor
    forks: list[Fork]
    copies: list[tuple[int, int]]


@dataclass(slots=True)
class Guesses:
    """What a sequence of `length` tokens may say next, one token after the other.

    kinds: of GuessRates, of every guess. chances: that it and all before it are right.
    """

    length: int
    tokens: list[int]
    sureness: list[float]
    kinds: list[int]
    chances: list[float]


class MtpDrafter:
    """The model's first MTP module, its keys in the cache's layer after the model's own.

    Further guesses apply the same module to its own output, in place of the hidden state that is
    not known yet; the keys they leave are overwritten with true ones when their tokens have come.
    """

    def __init__(
        self, model: CausalLM, cache: PagedCache, blocks: BlockManager, *, vocabulary: int
    ) -> None:
        self.model = model
        self.cache = cache
        self.blocks = blocks
        self.rates = GuessRates()
        self._guesser = Guesser(model, cache, vocabulary=vocabulary)
        self._guesses: dict[Sequence, Guesses] = {}
        # Blocks that lack keys, because they were computed while nobody followed.
        self._stale_N = np.zeros(cache.num_blocks, dtype=bool)
        self._has_stale = False

    def sleep(self, chunks: list[Chunk], copies: list[tuple[int, int]]) -> None:
        """After a step that is not to be followed, while its blocks are its sequences' still: note
        where keys are missing now."""
        size = self.cache.block_size
        for chunk in chunks:
            first, last = chunk.start // size, (chunk.start + chunk.rows - 1) // size
            self._stale_N[chunk.seq.block_table[first : last + 1]] = True
        self._has_stale = True
        self._copy(copies)

    def follow(
        self,
        step: FollowedStep,
        useful: Callable[[Sequence], int] | None,
        costs: StepCosts,
        *,
        is_typical: bool,
        least_depth: int,
    ) -> None:
        """After a step: write the module's keys of all its rows, and guess.

        useful: how many guesses are of use to whom, None for none to anybody. costs: told what it
        took in a typical step. least_depth: of guesses that are made though they may not pay.
        """
        chunks, paged, hidden_TD, forks, copies = step
        start = time.perf_counter()
        row_of: dict[Sequence, int] = {}  # where the next token was drawn
        first = 0
        for chunk in chunks:
            self._judge(chunk.seq)
            accepted = chunk.seq.computed - chunk.start - chunk.count
            # Of a sequence that is over `computed` says nothing, nor is its row asked for.
            row_of[chunk.seq] = first + chunk.count - 1 + max(0, accepted)
            first += chunk.rows
        out_TD = self.model.mtp_hidden(hidden_TD, _next_ids(chunks, hidden_TD.device), paged)
        self._note_new_blocks(paged)
        self._copy(copies)
        if forks:
            hidden_FD = hidden_TD[[row_of[fork.parent] for fork in forks]]
            row_of.update((fork.seq, first + i) for i, fork in enumerate(forks))
            out_TD = torch.cat((out_TD, self._follow_forks(forks, hidden_FD)))
        filled = time.perf_counter()
        if is_typical:
            costs.observe_extra("fill", filled - start)
        if useful is None:
            return
        rooms: dict[Sequence, int] = {}
        for seq in row_of:
            most = useful(seq)
            if most > 0 and not self.lacks_keys(seq):
                rooms[seq] = self._room(seq, most - 1)
        if not rooms:
            return
        wanted = sorted(rooms, key=lambda seq: -rooms[seq])
        plan = self._plan([rooms[seq] for seq in wanted], len(row_of), costs, least_depth)
        out_BD = out_TD[[row_of[seq] for seq in wanted]]
        said, further = self._guesser.guess(wanted, out_BD, plan)
        for seq, (tokens, sureness) in zip(wanted, said, strict=True):
            self._note(seq, tokens, sureness)
        if is_typical:
            costs.observe_extra("guess", time.perf_counter() - filled - further)
            passes = max(len(tokens) for tokens, _ in said)
            if passes > 1:
                costs.observe_extra("deepen", further / (passes - 1))

    def _room(self, seq: Sequence, most: int) -> int:
        """Keys, up to `most`, that its blocks have a place for after the one before its last token.
        Where they end, the block that its next tokens need is taken now, if enough are free."""
        most = min(most, DEEPEST - 1)
        if self.blocks.free_blocks > self.blocks.blocks_for(most) and (
            len(seq.block_table) * self.cache.block_size < seq.computed + most
        ):
            self.blocks.append(seq, most)
        return min(most, len(seq.block_table) * self.cache.block_size - seq.computed)

    def _plan(self, rooms: list[int], ends: int, costs: StepCosts, least_depth: int) -> Plan:
        """ends: sequences in the next step. Guesses go as far as anybody's room."""
        depth, rows = min(DEEPEST, rooms[0] + 1), len(rooms)
        besides = costs.extra("fill") + costs.extra("guess") - costs.extra("deepen")
        further = costs.extra("deepen")
        steps = [costs.cost(ends + rows * made) for made in range(depth + 2)]
        prices = [step + besides + further * made for made, step in enumerate(steps)]
        return Plan(rooms, ends, prices, self.rates, depth, least_depth)

    def _note(self, seq: Sequence, tokens: list[int], sureness: list[float]) -> None:
        kinds = [self.rates.kind(depth, sure) for depth, sure in enumerate(sureness)]
        chances = list(accumulate((self.rates.rate(kind) for kind in kinds), mul))
        self._guesses[seq] = Guesses(len(seq), tokens, sureness, kinds, chances)

    def loop_plan(self, costs: StepCosts, least_depth: int) -> Plan:
        """For one sequence with room for all that can be guessed."""
        return self._plan([DEEPEST - 1], 1, costs, least_depth)

    def looped(self, seq: Sequence, first: int, said: GuessedTokens, *, goes_on: bool) -> None:
        """After steps in one call, from position `first` on, which wrote the module's keys and
        guessed: what was seen of the guesses, and those at what comes next."""
        self._guesses.pop(seq, None)
        tokens, at = [token for token, _ in said.drawn], 0
        for each in said.rounds:
            kinds = [self.rates.kind(depth, sure) for depth, sure in enumerate(each.sureness)]
            self._compare(each.guessed, kinds, tokens[at:])
            at += each.won
        if self._has_stale:
            size = self.cache.block_size
            begun = range(-(-first // size), -(-(first + len(tokens)) // size))
            self._stale_N[[seq.block_table[i] for i in begun if i < len(seq.block_table)]] = False
            self._has_stale = bool(self._stale_N.any())
        is_as_drawn = seq.token_ids[first + 1 :] == tokens
        if goes_on and is_as_drawn and said.guessed:
            self._note(seq, said.guessed, said.sureness)

    def guesses(self, seq: Sequence) -> Guesses | None:
        """What has been guessed of the sequence as it stands, if anything."""
        found = self._guesses.get(seq)
        return found if found is not None and found.length == len(seq) and found.tokens else None

    def drop(self, seq: Sequence) -> None:
        self._guesses.pop(seq, None)

    def _note_new_blocks(self, paged: PagedSequences) -> None:
        """A block that is filled from its beginning lacks nothing."""
        if self._has_stale:
            slots_T, size = paged.slots_T.cpu().numpy(), self.cache.block_size
            self._stale_N[slots_T[slots_T % size == 0] // size] = False
            self._has_stale = bool(self._stale_N.any())

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        self.cache.copy_blocks(copies)
        for source, target in copies if self._has_stale else ():
            self._stale_N[target] = self._stale_N[source]

    def lacks_keys(self, seq: Sequence) -> bool:
        if not self._has_stale:
            return False
        computed = -(-seq.computed // self.cache.block_size)
        return bool(self._stale_N[seq.block_table[:computed]].any())

    def _follow_forks(self, forks: list[Fork], hidden_FD: Tensor) -> Tensor:
        ids = [fork.seq.token_ids[fork.position + 1] for fork in forks]
        tables, positions = [fork.table for fork in forks], [fork.position for fork in forks]
        paged = PagedSequences.single_rows(ids, tables, positions, self.cache)
        return self.model.mtp_hidden(hidden_FD, paged.ids_T, paged)

    def _judge(self, seq: Sequence) -> None:
        """Compare guesses with what was said, whether they were used or not."""
        guesses = self._guesses.pop(seq, None)
        if guesses is None:
            return
        self._compare(guesses.tokens, guesses.kinds, seq.token_ids[guesses.length :])

    def _compare(self, guessed: list[int], kinds: list[int], said: list[int]) -> None:
        for token, kind, true in zip(guessed, kinds, said, strict=False):
            self.rates.judge(kind, token == true)
            if token != true:
                break


def _next_ids(chunks: list[Chunk], device: torch.device) -> Tensor:
    """Of every row the token after it, int64 [T]; any where a draft was wrong."""
    ids: list[int] = []
    for chunk in chunks:
        known = chunk.seq.token_ids[chunk.start + 1 : chunk.start + chunk.rows + 1]
        ids += known
        ids += [0] * (chunk.rows - len(known))
    return torch.tensor(ids, device=device)
