"""Guesses at the tokens to come, each made by multi-token prediction from the guess before it.

They go on as long as one more is expected to bring more tokens a second. One native call where the
module is fused; `guess_with_torch` is the same in Python, its oracle and what other devices use.

B sequences · D model · V vocabulary
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mull.engine.cache import PagedCache
from mull.engine.fused_decoder import FusedDecoder
from mull.engine.fused_latent import FusedNextToken
from mull.engine.guess_rates import DEPTHS, SURENESSES, GuessRates
from mull.engine.native_step import native_library
from mull.engine.paged import PagedSequences
from mull.engine.sampler import choose_surely, uniform
from mull.engine.sequence import Sequence
from mull.errors import ModelError
from mull.kernels import PackedLinear, library
from mull.model.transformer import CausalLM

Said = list[tuple[list[int], list[float]]]


@dataclass(frozen=True)
class Plan:
    """How far to guess.

    rooms: falling; of every sequence, how many guesses after its first there is a place for.
    expected: tokens of the next step without guesses. costs: of a step that checks 0, 1, .. guesses
    of each sequence, making them included; one more than `depth` and one. least_depth: guessed
    whether it pays or not.
    """

    rooms: list[int]
    expected: float
    costs: list[float]
    rates: GuessRates
    depth: int
    least_depth: int

    def goes_on(self, made: int, chances: list[float], expected: float) -> bool:
        """Whether another pass after so many pays, or is wanted all the same."""
        more = sum(chances) * self.rates.mean(made)
        pays = (expected + more) * self.costs[made] > expected * self.costs[made + 1]
        return pays or made < self.least_depth


def guess(
    model: CausalLM,
    cache: PagedCache,
    seqs: list[Sequence],
    hidden_BD: Tensor,
    plan: Plan,
    *,
    vocabulary: int,
) -> tuple[Said, float]:
    """(guesses of each sequence and how sure the module was of each, seconds of all passes but the
    first). hidden_BD: the module's output before each sequence's last token.

    Sampling filters and penalties are not looked at in native code: only guesses depend on it.
    """
    module, head = model.mtp[0], model.lm_head
    if isinstance(module, FusedNextToken) and isinstance(head, PackedLinear):
        assert isinstance(model.model, FusedDecoder)
        firsts = [len(seq) - 2 for seq in seqs]
        highest = max(first + room for first, room in zip(firsts, plan.rooms, strict=True))
        table = model.model.rope.whole_table(highest)
        if table is not None:
            rows = model.model.embed_tokens.head
            call = _Call(module, head, rows, cache, seqs, hidden_BD, plan, vocabulary)
            return call.run(*table)
    return guess_with_torch(model, cache, seqs, hidden_BD, plan, vocabulary=vocabulary)


def guess_with_torch(
    model: CausalLM,
    cache: PagedCache,
    seqs: list[Sequence],
    hidden_BD: Tensor,
    plan: Plan,
    *,
    vocabulary: int,
) -> tuple[Said, float]:
    """As `guess`, with a pass in Python for every guess, and with every filter."""
    said: Said = [([], []) for _ in seqs]
    chances, expected = [1.0] * len(seqs), plan.expected
    for made in range(plan.depth):
        count = sum(room >= made for room in plan.rooms)
        if not count:
            break
        if made:
            ids = [tokens[-1] for tokens, _ in said[:count]]
            places = [len(seq) - 2 + made for seq in seqs[:count]]
            tables = [seq.block_table for seq in seqs[:count]]
            paged = PagedSequences.single_rows(ids, tables, places, cache)
            hidden_BD = model.mtp_hidden(hidden_BD[:count], paged.ids_T, paged)
        logits_BV = model.logits(hidden_BD)[:, :vocabulary]
        try:
            found = choose_surely(logits_BV, seqs[:count], [tokens for tokens, _ in said[:count]])
        except ModelError:
            break  # damaged weights of the module: it has nothing to say
        for b, (token, sureness) in enumerate(zip(*found, strict=True)):
            said[b][0].append(token)
            said[b][1].append(sureness)
            chances[b] *= plan.rates.rate(plan.rates.kind(made, sureness))
        expected += sum(chances[:count])
        if not plan.goes_on(made + 1, chances[:count], expected):
            break
    return said, 0.0


class _Call:
    """The memory of one native call (native/abi.h, Guess)."""

    def __init__(
        self,
        module: FusedNextToken,
        head: PackedLinear,
        embedding: PackedLinear,
        cache: PagedCache,
        seqs: list[Sequence],
        hidden_BD: Tensor,
        plan: Plan,
        vocabulary: int,
    ) -> None:
        rows, depth = len(seqs), min(plan.depth, plan.rooms[0] + 1)
        self.rows, self.depth = rows, depth
        inverses = [
            0.0 if seq.sampling.is_greedy else 1.0 / seq.sampling.temperature for seq in seqs
        ]
        noise = [
            uniform(seq.seed, seq.index, seq.generated + made) if inverse else 0.0
            for made in range(depth)
            for seq, inverse in zip(seqs, inverses, strict=True)
        ]
        means = [plan.rates.mean(min(made, DEPTHS - 1)) for made in range(depth + 1)]
        places = [*(len(seq) - 2 for seq in seqs), *plan.rooms, *[0] * (rows * (1 + depth))]
        numbers = [*noise, *plan.rates.rates(), *means, *plan.costs[: depth + 2], *[0.0] * rows]
        self._longs = (ctypes.c_int64 * len(places))(*places)
        self._doubles = (ctypes.c_double * len(numbers))(*numbers)
        self._floats = (ctypes.c_float * (rows * (1 + depth)))(*inverses)
        self._ints = (ctypes.c_int32 * (3 * rows + 1))()
        self._logits = torch.empty(rows, head.out_features)
        self._hidden = hidden_BD.to(torch.float32, copy=True).contiguous()
        self._table = np.zeros((rows, max(len(seq.block_table) for seq in seqs)), dtype=np.int32)
        for row_M, seq in zip(self._table, seqs, strict=True):
            row_M[: len(seq.block_table)] = seq.block_table
        layer = module.layers.first_layer
        latents = cache.latents[layer]
        first_pointer = ctypes.addressof(cache.latent_pointers)
        self._step = library.Step(
            embedding=ctypes.pointer(embedding.native),
            key_cache=first_pointer + layer * ctypes.sizeof(ctypes.c_void_p),
            cache_kind=library.CACHE_KINDS[latents.dtype],
            paging=library.Paging(
                block_table=self._table.ctypes.data,
                blocks_per_sequence=self._table.shape[1],
                num_blocks=cache.num_blocks,
                block_size=cache.block_size,
            ),
        )
        longs, doubles = ctypes.addressof(self._longs), ctypes.addressof(self._doubles)
        floats, ints = ctypes.addressof(self._floats), ctypes.addressof(self._ints)
        rates = doubles + 8 * rows * depth
        averages = rates + 8 * SURENESSES * DEPTHS
        costs = averages + 8 * (depth + 1)
        self.native = library.Guess(
            module=ctypes.pointer(module.native),
            head=ctypes.pointer(head.native),
            step=self._step,
            hidden=self._hidden.data_ptr(),
            logits=self._logits.data_ptr(),
            first=longs,
            room=longs + 8 * rows,
            positions=longs + 16 * rows,
            tokens=longs + 24 * rows,
            noise=doubles,
            rates=rates,
            means=averages,
            costs=costs,
            chances=costs + 8 * (depth + 2),
            inverse_temperature=floats,
            sureness=floats + 4 * rows,
            slots=ints,
            context=ints + 4 * rows,
            query_starts=ints + 8 * rows,
            rows=rows,
            vocabulary=vocabulary,
            surenesses=SURENESSES,
            rated_depths=DEPTHS,
            depth=depth,
            least_depth=plan.least_depth,
            expected=plan.expected,
        )

    def run(self, cos: Tensor, sin: Tensor) -> tuple[Said, float]:
        self.native.step.cos, self.native.step.sin = cos.data_ptr(), sin.data_ptr()
        library.check(native_library().mull_guess(ctypes.byref(self.native), library.threads()))
        rows, made = self.rows, self.native.passes
        tokens = self._longs[3 * rows : (3 + made) * rows]
        sureness = self._floats[rows : (1 + made) * rows]
        said: Said = []
        for b in range(rows):
            own = tokens[b::rows]
            count = own.index(-1) if -1 in own else made
            said.append((own[:count], sureness[b::rows][:count]))
        return said, self.native.further_seconds
