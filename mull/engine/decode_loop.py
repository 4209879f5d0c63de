"""Several decode steps of the same sequences in one native call.

What Python does between two steps, with the caches full of weights, takes a sixth of a small
model's step. Where nothing needs it there (every sequence only draws its next token), several steps
run in one call; their tokens then go the way that tokens of a right guess go, so that whatever
ends, stops or steers an answer sees them one by one.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mull import kernels
from mull.engine.block_cache import BlockManager
from mull.engine.cache import PagedCache
from mull.engine.fused import FusedLayers
from mull.engine.fused_decoder import FusedDecoder
from mull.engine.fused_latent import FusedLatentLayers
from mull.engine.native_step import native_library
from mull.engine.paged import BlockTables
from mull.engine.request import TokenLogprob
from mull.engine.sampler import filters_of, inverse_temperatures, logprob_scale, noise_of
from mull.engine.scheduler import Chunk
from mull.engine.sequence import Sequence
from mull.kernels import PackedLinear, library
from mull.kernels.draw import pointers
from mull.model.transformer import CausalLM

MOST_STEPS = 8
# What is said comes in pieces no further apart, and a newcomer's turn (see `interrupt`) no later.
LONGEST_S = 0.05
# Ids a row is watched for; with more of them its end is seen after the call.
_MOST_ENDS = 16
# A row that has ended is computed for nothing; so many of a batch are, until the call ends.
_ENDED_SHARE = 16


class Drawn(NamedTuple):
    """tokens: [steps][rows]; logprobs likewise, if any row wanted them. A token of -1: see
    kernels.draw. hidden_NBD: what the model gave in each step, good until the next call."""

    tokens: list[list[int]]
    logprobs: list[list[float]] | None
    hidden_NBD: Tensor

    def of_row(
        self, row: int, steps: int, *, tell_logprobs: bool
    ) -> list[tuple[int, TokenLogprob | None]]:
        tokens = [drawn[row] for drawn in self.tokens[:steps]]
        if self.logprobs is None or not tell_logprobs:
            return [(token, None) for token in tokens]
        values = [told[row] for told in self.logprobs[:steps]]
        return [(t, TokenLogprob(t, value)) for t, value in zip(tokens, values, strict=True)]


class DecodeLoop:
    def __init__(
        self, model: CausalLM, cache: PagedCache, blocks: BlockManager, *, vocabulary: int
    ) -> None:
        self._model, self._cache, self._blocks = model, cache, blocks
        self._vocabulary = vocabulary
        self._seqs: list[Sequence] = []
        self._seconds = 0.0  # of a step of theirs
        self._hidden = self._logits = torch.empty(0)

    def can_run(self) -> bool:
        """Whether the model's steps are native code altogether."""
        model = self._model
        return (
            isinstance(model.model, FusedDecoder)
            and isinstance(model.lm_head, PackedLinear)
            and self._cache.data.device.type == "cpu"
            and kernels.native_available()
        )

    def steps(
        self, chunks: list[Chunk], left: list[int], *, streams: bool, most: int | None
    ) -> int:
        """How many steps the chunks may run in one call; 1: none but the ordinary one.

        left: how many tokens each answer may still have. streams: somebody reads along. most: a
        limit of the caller's.
        """
        if any(chunk.draft or not only_draws(chunk) for chunk in chunks):
            return 1
        seqs = [chunk.seq for chunk in chunks]
        if seqs != self._seqs:
            self._seqs, self._seconds = seqs, 0.0
            return 1  # shows how long one takes
        most = min(MOST_STEPS, MOST_STEPS if most is None else most, *left)
        if streams:
            most = min(most, int(LONGEST_S / max(self._seconds, 1e-9)))
        if most < 2 or not self._have_room(seqs, most) or not self.can_run():
            return 1
        assert isinstance(self._model.model, FusedDecoder)
        highest = max(seq.computed for seq in seqs) + most
        return 1 if self._model.model.rope.whole_table(highest) is None else most

    def took(self, chunks: list[Chunk], seconds: float) -> None:
        """Of one step of these chunks."""
        if len(chunks) == len(self._seqs):
            self._seconds = seconds

    def run(
        self, tables: BlockTables, ends: list[frozenset[int]], interrupt: np.ndarray, steps: int
    ) -> Drawn:
        """So many steps, or fewer, of the sequences that `steps` was asked about. interrupt [1]:
        set by another thread (see Engine.interrupt), ends the call after its step."""
        seqs, cache, model, rows = self._seqs, self._cache, self._model, len(self._seqs)
        for seq in seqs:
            self._blocks.append(seq, steps)
        decoder, head = model.model, model.lm_head
        assert isinstance(decoder, FusedDecoder)
        assert isinstance(head, PackedLinear)
        table_BM = torch.from_numpy(tables.matrix(seqs))
        first_B = torch.tensor([seq.computed for seq in seqs])
        angles = decoder.rope.whole_table(int(first_B.max()) + steps)
        assert angles is not None
        cos, sin = angles
        tokens_NB = torch.empty(steps + 1, rows, dtype=torch.int64)
        tokens_NB[0] = torch.tensor([seq.token_ids[-1] for seq in seqs])
        noise = [noise_of(seqs, ahead=i) for i in range(steps)]
        noise_NB = torch.tensor(noise, dtype=torch.float64)
        inverse_B = torch.tensor(inverse_temperatures(seqs), dtype=torch.float32)
        scales = [logprob_scale(seq.sampling) for seq in seqs]
        scale_B = torch.tensor(scales, dtype=torch.float32)
        filters = filters_of(seqs)
        wants_logprobs = any(seq.sampling.logprobs is not None for seq in seqs)
        told = steps if wants_logprobs else 0
        logprobs_NB = torch.empty(told, rows, dtype=torch.float32)
        ends_BE, flag = padded_ends(ends), torch.from_numpy(interrupt)
        positions_B = torch.empty(rows, dtype=torch.int64)
        ints = torch.empty(3 * rows + 1, dtype=torch.int32)
        if self._logits.numel() < rows * head.out_features:
            self._logits = torch.empty(rows * head.out_features, dtype=torch.float32)
        if self._hidden.numel() < steps * rows * head.in_features:
            self._hidden = torch.empty(steps * rows * head.in_features, dtype=torch.float32)
        wanted = library.Decode(
            head=ctypes.pointer(head.native),
            step=library.Step(
                embedding=ctypes.pointer(decoder.embed_tokens.head.native),
                cos=cos.data_ptr(),
                sin=sin.data_ptr(),
                cache_kind=library.CACHE_KINDS[cache.dtype],
                paging=library.Paging(
                    block_table=table_BM.data_ptr(),
                    blocks_per_sequence=table_BM.shape[1],
                    num_blocks=cache.num_blocks,
                    block_size=cache.block_size,
                ),
            ),
            places=library.Places(
                first=first_B.data_ptr(),
                positions=positions_B.data_ptr(),
                slots=ints.data_ptr(),
                context=ints[rows:].data_ptr(),
                query_starts=ints[2 * rows :].data_ptr(),
            ),
            hidden=self._hidden.data_ptr(),
            logits=self._logits.data_ptr(),
            inverse_temperature=inverse_B.data_ptr(),
            noise=noise_NB.data_ptr(),
            **pointers(filters),
            logprob_scale=scale_B.data_ptr(),
            ends=ends_BE.data_ptr(),
            tokens=tokens_NB.data_ptr(),
            logprobs=logprobs_NB.data_ptr() if wants_logprobs else None,
            interrupt=flag.data_ptr(),
            rows=rows,
            vocabulary=self._vocabulary,
            ends_each=ends_BE.shape[1],
            steps=steps,
            most_ended=rows // _ENDED_SHARE,
        )
        self._point(wanted, decoder.layers[0])
        library.check(native_library().mull_decode(ctypes.byref(wanted), library.threads()))
        made = wanted.made
        logprobs = logprobs_NB[:made].tolist() if wants_logprobs else None
        hidden = self._hidden[: made * rows * head.in_features]
        hidden_NBD = hidden.view(made, rows, head.in_features)
        return Drawn(tokens_NB[1 : made + 1].tolist(), logprobs, hidden_NBD)

    def _point(self, wanted: library.Decode, layers: torch.nn.Module) -> None:
        """To the model's layers and their cache, as they are bound now."""
        if isinstance(layers, FusedLatentLayers):
            wanted.latent_stack = ctypes.pointer(layers.stack)
            layers.point_to_own(wanted.step, self._cache)
            return
        assert isinstance(layers, FusedLayers)
        wanted.stack = ctypes.pointer(layers.stack)
        wanted.step.key_cache = ctypes.addressof(self._cache.key_pointers)
        wanted.step.value_cache = ctypes.addressof(self._cache.value_pointers)

    def _have_room(self, seqs: list[Sequence], steps: int) -> bool:
        blocks = self._blocks
        missing = sum(
            max(0, blocks.blocks_for(seq.computed + steps) - len(seq.block_table)) for seq in seqs
        )
        return missing <= blocks.free_blocks


def only_draws(chunk: Chunk) -> bool:
    """Whether all that becomes of the chunk is a token drawn from its logits as they are."""
    seq = chunk.seq
    return (
        chunk.count == 1
        and seq.is_plain
        and seq.is_decoding
        and chunk.reaches_end
        and not seq.siblings
    )


def padded_ends(ends: list[frozenset[int]]) -> Tensor:
    """int64 [rows, E]; -1 is no token."""
    watched = [sorted(some)[:_MOST_ENDS] for some in ends]
    width = max(map(len, watched))
    rows = [some + [-1] * (width - len(some)) for some in watched]
    return torch.tensor(rows, dtype=torch.int64)
