"""Several steps of one sequence in one native call, each checking what MTP guessed before it.

As DecodeLoop, for a sequence that is alone and for which multi-token prediction pays: between two
steps of a small model Python takes longer than the steps do. Which guesses are made and checked is
decided there as Speculation and MtpDrafter decide it here; what was seen comes back, so that both
go on learning.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mull import kernels
from mull.engine.block_cache import BlockManager
from mull.engine.cache import PagedCache
from mull.engine.decode_loop import LONGEST_S, padded_ends
from mull.engine.fused_decoder import FusedDecoder
from mull.engine.fused_latent import FusedLatentLayers, FusedNextToken
from mull.engine.guessing import GuessCall, Plan
from mull.engine.mtp_gate import DEEPEST
from mull.engine.native_step import native_library
from mull.engine.paged import BlockTables
from mull.engine.request import TokenLogprob
from mull.engine.sampler import filters_of, inverse_temperatures, logprob_scale, noise_of
from mull.engine.sequence import Sequence
from mull.kernels import PackedLinear, library
from mull.kernels.draw import Filters, pointers
from mull.model.transformer import CausalLM

MOST_STEPS = 16
MOST_TOKENS = 64
_MOST_ROWS = DEEPEST + 1


class Round(NamedTuple):
    """One of the steps: what had been guessed and how surely, rows computed, tokens won, and the
    seconds of the step, of the module's keys, of all guesses after it, and of all but the first."""

    guessed: list[int]
    sureness: list[float]
    rows: int
    won: int
    seconds: list[float]


@dataclass(frozen=True)
class GuessedTokens:
    """What the steps came to. guessed, sureness: at what follows the last token."""

    drawn: list[tuple[int, TokenLogprob | None]]
    rounds: list[Round]
    guessed: list[int]
    sureness: list[float]


class GuessLoop:
    def __init__(self, model: CausalLM, cache: PagedCache, *, vocabulary: int) -> None:
        self._model, self._cache, self._vocabulary = model, cache, vocabulary
        self.most_steps = MOST_STEPS
        self._seconds = 0.0  # of a step
        self._memory: _Memory | None = None

    @property
    def is_native(self) -> bool:
        """Whether the model's and the module's steps are native code altogether."""
        model = self._model
        return (
            isinstance(model.model, FusedDecoder)
            and isinstance(model.model.layers[0], FusedLatentLayers)
            and isinstance(model.lm_head, PackedLinear)
            and isinstance(model.mtp[0], FusedNextToken)
            and self._cache.data.device.type == "cpu"
            and kernels.native_available()
        )

    def has_room(self, seq: Sequence, most: int, blocks: BlockManager) -> bool:
        """For so many tokens and guesses at more."""
        highest, decoder = seq.computed + most + DEEPEST, self._model.model
        assert isinstance(decoder, FusedDecoder)
        missing = blocks.blocks_for(highest) - len(seq.block_table)
        return missing <= blocks.free_blocks and decoder.rope.whole_table(highest) is not None

    def steps(self, *, streams: bool) -> int:
        """How many may run in one call; streams: somebody reads along."""
        if not streams or not self._seconds:
            return self.most_steps
        return max(1, min(self.most_steps, int(LONGEST_S / self._seconds)))

    def run(
        self,
        seq: Sequence,
        tables: BlockTables,
        ends: frozenset[int],
        interrupt: np.ndarray,
        *,
        plan: Plan,
        step_costs: list[float],
        least_chance: float,
        least_rate: float,
        draft: tuple[list[int], list[float]],
        checked: int,
        steps: int,
        most: int,
        left: int,
    ) -> GuessedTokens:
        """plan: of guesses, the same for all steps. step_costs: by rows, from none on. draft: the
        guesses there are (and how sure), so many of them checked in the first step. most: tokens of
        this call; its blocks have a place for DEEPEST more. left: of the answer."""
        memory = self._prepared(seq, plan, step_costs, most)
        native = memory.native
        native.least_chance, native.least_rate = least_chance, least_rate
        native.steps, native.most, native.left = steps, most, left
        native.drafted, native.checked = len(draft[0]), checked
        memory.draft[: len(draft[0])], memory.sureness[: len(draft[1])] = draft
        table_1M, ends_1E = torch.from_numpy(tables.matrix([seq])), padded_ends([ends])
        native.step.paging.block_table = table_1M.data_ptr()
        native.step.paging.blocks_per_sequence = table_1M.shape[1]
        native.ends, native.ends_each = ends_1E.data_ptr(), ends_1E.shape[1]
        flag = torch.from_numpy(interrupt)
        native.interrupt = flag.data_ptr()
        filters = filters_of([seq] * _MOST_ROWS)
        for name in Filters._fields:
            setattr(native, name, pointers(filters).get(name))
        wants_logprobs = seq.sampling.logprobs is not None
        native.logprobs = memory.logprobs_at if wants_logprobs else None
        library.check(native_library().mull_guessed_steps(ctypes.byref(native), library.threads()))
        made, told, drafted = native.made, native.steps_made, native.drafted
        said = memory.tokens[1 : made + 1].tolist()
        drawn: list[tuple[int, TokenLogprob | None]] = [(token, None) for token in said]
        if wants_logprobs:
            values = memory.logprobs[:made].tolist()
            drawn = [(t, TokenLogprob(t, value)) for t, value in zip(said, values, strict=True)]
        rounds = [
            Round(guessed[:count], sure[:count], rows, won, seconds)
            for guessed, sure, (count, rows, won), seconds in zip(
                memory.guessed[:told].tolist(),
                memory.sure[:told].tolist(),
                memory.counts[:told].tolist(),
                memory.seconds[:told].tolist(),
                strict=True,
            )
        ]
        if rounds:
            self._seconds = sum(sum(each.seconds[:3]) for each in rounds) / told
        guesses, sureness = memory.draft[:drafted].tolist(), memory.sureness[:drafted].tolist()
        return GuessedTokens(drawn, rounds, guesses, sureness)

    def _prepared(self, seq: Sequence, plan: Plan, step_costs: list[float], most: int) -> _Memory:
        """The memory of a call, with what depends on the model, the sequence and the costs."""
        model, cache = self._model, self._cache
        decoder, head, module = model.model, model.lm_head, model.mtp[0]
        assert isinstance(decoder, FusedDecoder)
        assert isinstance(head, PackedLinear)
        assert isinstance(module, FusedNextToken)
        layers = decoder.layers[0]
        assert isinstance(layers, FusedLatentLayers)
        if self._memory is None:
            embedding = decoder.embed_tokens.head
            call = GuessCall(module, head, embedding, cache, 1, self._vocabulary)
            self._memory = _Memory(call, head, cache, self._vocabulary)
        memory, native = self._memory, self._memory.native
        angles = decoder.rope.whole_table(seq.computed + most + DEEPEST)
        assert angles is not None
        memory.angles = angles  # who grows the table forgets this one
        memory.call.prepare([seq], [seq.computed], plan, angles)
        # Asked for anew: whoever puts new weights in binds them anew.
        native.stack = ctypes.pointer(layers.stack)
        native.step.embedding = memory.call.native.step.embedding
        native.step.cos, native.step.sin = angles[0].data_ptr(), angles[1].data_ptr()
        layers.point_to_own(native.step, cache)
        native.first = seq.computed
        native.capacity = len(seq.block_table) * cache.block_size
        memory.tokens[0] = seq.token_ids[-1]
        memory.costs[: len(step_costs)] = step_costs
        memory.inverse_temperature[:] = inverse_temperatures([seq])
        memory.logprob_scale[:] = logprob_scale(seq.sampling)
        if not seq.sampling.is_greedy:
            wanted = range(most + plan.depth)
            memory.noise[: len(wanted)] = [noise_of([seq], ahead=i)[0] for i in wanted]
        return memory


class _Memory:
    """Of native calls (native/abi.h, GuessedSteps). Kept: to make it takes as long as a step."""

    def __init__(
        self, call: GuessCall, head: PackedLinear, cache: PagedCache, vocabulary: int
    ) -> None:
        rows, steps, depth, width = _MOST_ROWS, MOST_STEPS, DEEPEST, head.in_features
        longs, floats, doubles = torch.int64, torch.float32, torch.float64
        self.call = call
        self.angles: tuple[Tensor, Tensor] | None = None
        self._kept = kept = {
            "draft": torch.zeros(depth, dtype=longs),
            "sureness": torch.zeros(depth, dtype=floats),
            "tokens": torch.zeros(MOST_TOKENS + 1, dtype=longs),
            "logprobs": torch.zeros(MOST_TOKENS, dtype=floats),
            "noise": torch.zeros(MOST_TOKENS + depth, dtype=doubles),
            "costs": torch.zeros(rows + 1, dtype=doubles),
            "inverse_temperature": torch.zeros(rows, dtype=floats),
            "logprob_scale": torch.zeros(rows, dtype=floats),
            "guessed": torch.zeros(steps, depth, dtype=longs),
            "sure": torch.zeros(steps, depth, dtype=floats),
            "counts": torch.zeros(steps, 3, dtype=longs),
            "seconds": torch.zeros(steps, 4, dtype=doubles),
            "ids": torch.zeros(rows, dtype=longs),
            "positions": torch.zeros(rows, dtype=longs),
            "slots": torch.zeros(rows, dtype=torch.int32),
            "bounds": torch.zeros(3, dtype=torch.int32),
            "hidden": torch.zeros(rows, width),
            "ahead": torch.zeros(rows, width),
            "logits": torch.zeros(rows, head.out_features),
        }
        self.draft, self.sureness = kept["draft"].numpy(), kept["sureness"].numpy()
        self.tokens, self.logprobs = kept["tokens"].numpy(), kept["logprobs"].numpy()
        self.noise, self.costs = kept["noise"].numpy(), kept["costs"].numpy()
        self.guessed, self.sure = kept["guessed"].numpy(), kept["sure"].numpy()
        self.counts, self.seconds = kept["counts"].numpy(), kept["seconds"].numpy()
        self.inverse_temperature = kept["inverse_temperature"].numpy()
        self.logprob_scale = kept["logprob_scale"].numpy()
        self.logprobs_at = kept["logprobs"].data_ptr()
        self.native = library.GuessedSteps(
            guess=ctypes.pointer(call.native),
            step=library.Step(
                cache_kind=library.CACHE_KINDS[cache.dtype],
                paging=library.Paging(num_blocks=cache.num_blocks, block_size=cache.block_size),
            ),
            vocabulary=vocabulary,
            most_rows=rows,
            **{name: tensor.data_ptr() for name, tensor in kept.items() if name != "logprobs"},
        )
