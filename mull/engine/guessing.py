"""Guesses at the tokens to come, each made by multi-token prediction from the guess before it.

They go on as long as one more is expected to bring more tokens a second. One native call where the
module is fused; `guess_with_torch` does it in Python, on any device, and is what the call is tested
against.

B sequences · D model · V vocabulary
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mull.engine.cache import PagedCache
from mull.engine.fused_decoder import FusedDecoder
from mull.engine.fused_latent import FusedNextToken
from mull.engine.guess_rates import DEPTHS, SURENESSES, GuessRates
from mull.engine.mtp_gate import DEEPEST
from mull.engine.native_step import native_library
from mull.engine.paged import PagedSequences
from mull.engine.sampler import choose_surely, inverse_temperatures, noise_of
from mull.engine.sequence import Sequence
from mull.errors import ModelError
from mull.kernels import PackedLinear, library
from mull.model.transformer import CausalLM

Said = list[tuple[list[int], list[float]]]
_RATES = SURENESSES * DEPTHS


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


class Guesser:
    """Guesses with a model's first MTP module, whose keys are in the cache's layer after its own.

    Filters, penalties and biases are not looked at in native code: only guesses depend on it.
    """

    def __init__(self, model: CausalLM, cache: PagedCache, *, vocabulary: int) -> None:
        self.model, self.cache = model, cache
        self._decoder: nn.Module = model.model
        self._vocabulary = vocabulary
        self._calls: dict[int, GuessCall] = {}  # by number of sequences
        self._logits_BV = torch.empty(0)

    def guess(self, seqs: list[Sequence], hidden_BD: Tensor, plan: Plan) -> tuple[Said, float]:
        """(guesses of each sequence and how sure the module was of each, seconds of all passes but
        the first). hidden_BD: the module's output before each sequence's last token."""
        model, decoder, module = self.model, self._decoder, self.model.mtp[0]
        if not (isinstance(decoder, FusedDecoder) and isinstance(module, FusedNextToken)):
            return guess_with_torch(model, self.cache, seqs, hidden_BD, plan, self._vocabulary)
        firsts = [len(seq) - 2 for seq in seqs]
        highest = max(first + room for first, room in zip(firsts, plan.rooms, strict=True))
        table = decoder.rope.whole_table(highest)
        if table is None:
            return guess_with_torch(model, self.cache, seqs, hidden_BD, plan, self._vocabulary)
        call = self._calls.get(len(seqs))
        if call is None:
            head, embedding = model.lm_head, decoder.embed_tokens.head
            assert isinstance(head, PackedLinear)
            call = GuessCall(module, head, embedding, self.cache, len(seqs), self._vocabulary)
            self._calls[len(seqs)] = call
        if len(self._logits_BV) < len(seqs):
            width = call.head.out_features
            self._logits_BV = torch.empty(len(seqs), width, dtype=torch.float32)
        return call.run(seqs, firsts, hidden_BD, plan, table, self._logits_BV)


def guess_with_torch(
    model: CausalLM,
    cache: PagedCache,
    seqs: list[Sequence],
    hidden_BD: Tensor,
    plan: Plan,
    vocabulary: int,
) -> tuple[Said, float]:
    """As Guesser.guess, with a pass in Python for every guess; looks at filters and penalties."""
    begin = 0.0
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
        if not made:
            begin = time.perf_counter()
        if not plan.goes_on(made + 1, chances[:count], expected):
            break
    return said, time.perf_counter() - begin if len(said[0][0]) > 1 else 0.0


class GuessCall:
    """The memory of native calls for so many sequences (native/abi.h, Guess)."""

    def __init__(
        self,
        module: FusedNextToken,
        head: PackedLinear,
        embedding: PackedLinear,
        cache: PagedCache,
        rows: int,
        vocabulary: int,
    ) -> None:
        self.module, self.head, self.embedding = module, head, embedding
        self.rows = rows
        guesses = rows * DEEPEST
        self._longs = torch.zeros(3 * rows + guesses, dtype=torch.int64)
        doubles = guesses + _RATES + 2 * DEEPEST + 3 + rows
        self._doubles = torch.zeros(doubles, dtype=torch.float64)
        self._floats = torch.zeros(rows + guesses, dtype=torch.float32)
        self._ints = torch.zeros(3 * rows + 1, dtype=torch.int32)
        self._table = torch.zeros(rows, 1, dtype=torch.int32)
        layer = module.layers.first_layer
        pointers = ctypes.addressof(cache.latent_pointers)
        longs, noise = self._longs.data_ptr(), self._doubles.data_ptr()
        floats, ints = self._floats.data_ptr(), self._ints.data_ptr()
        self._rates = guesses  # where they are among the doubles; then means, costs and chances
        rates = noise + 8 * guesses
        costs = rates + 8 * (_RATES + DEEPEST + 1)
        self.native = library.Guess(
            step=library.Step(
                key_cache=pointers + layer * ctypes.sizeof(ctypes.c_void_p),
                cache_kind=library.CACHE_KINDS[cache.dtype],
                paging=library.Paging(num_blocks=cache.num_blocks, block_size=cache.block_size),
            ),
            places=library.Places(
                first=longs,
                positions=longs + 16 * rows,
                slots=ints,
                context=ints + 4 * rows,
                query_starts=ints + 8 * rows,
            ),
            room=longs + 8 * rows,
            tokens=longs + 24 * rows,
            noise=noise,
            rates=rates,
            means=rates + 8 * _RATES,
            costs=costs,
            chances=costs + 8 * (DEEPEST + 2),
            inverse_temperature=floats,
            sureness=floats + 4 * rows,
            rows=rows,
            vocabulary=vocabulary,
            surenesses=SURENESSES,
            rated_depths=DEPTHS,
        )

    def run(
        self,
        seqs: list[Sequence],
        firsts: list[int],
        hidden_BD: Tensor,
        plan: Plan,
        table: tuple[Tensor, Tensor],
        logits_BV: Tensor,
    ) -> tuple[Said, float]:
        rows, native = self.rows, self.native
        hidden_BD = hidden_BD.to(torch.float32, copy=True).contiguous()  # is written to
        self.prepare(seqs, firsts, plan, table)
        noise = [number for made in range(plan.depth) for number in noise_of(seqs, ahead=made)]
        self._doubles.numpy()[: len(noise)] = noise
        native.hidden, native.logits = hidden_BD.data_ptr(), logits_BV.data_ptr()
        library.check(native_library().mull_guess(ctypes.byref(native), library.threads()))
        made = native.passes
        tokens = self._longs[3 * rows : (3 + made) * rows].tolist()
        sureness = self._floats[rows : (1 + made) * rows].tolist()
        said: Said = []
        for b in range(rows):
            own = tokens[b::rows]
            count = own.index(-1) if -1 in own else made
            said.append((own[:count], sureness[b::rows][:count]))
        return said, native.further_seconds

    def prepare(
        self,
        seqs: list[Sequence],
        firsts: list[int],
        plan: Plan,
        table: tuple[Tensor, Tensor],
    ) -> None:
        """All but what is guessed from and drawn with, and the memory for logits."""
        native, step = self.native, self.native.step
        # Asked for anew: whoever puts new weights in binds them anew.
        native.module = ctypes.pointer(self.module.native)
        native.head = ctypes.pointer(self.head.native)
        step.embedding = ctypes.pointer(self.embedding.native)
        step.cos, step.sin = table[0].data_ptr(), table[1].data_ptr()
        native.depth, native.least_depth = plan.depth, plan.least_depth
        native.expected = plan.expected
        rows, rates = self.rows, self._rates
        self._longs.numpy()[: 2 * rows] = [*firsts, *plan.rooms]
        self._floats.numpy()[:rows] = inverse_temperatures(seqs)
        doubles = self._doubles.numpy()
        means = [plan.rates.mean(made) for made in range(DEPTHS)]
        means += means[-1:] * (DEEPEST + 1 - DEPTHS)
        costs = plan.costs + plan.costs[-1:] * (DEEPEST + 2 - len(plan.costs))
        numbers = [*plan.rates.rates(), *means, *costs]
        doubles[rates : rates + len(numbers)] = numbers
        longest = max(len(seq.block_table) for seq in seqs)
        if longest > self._table.shape[1]:
            self._table = torch.zeros(rows, 2 * longest, dtype=torch.int32)
        for row_M, seq in zip(self._table.numpy(), seqs, strict=True):
            row_M[: len(seq.block_table)] = seq.block_table
        paging = self.native.step.paging
        paging.block_table = self._table.data_ptr()
        paging.blocks_per_sequence = self._table.shape[1]
