"""The step's sequences as the model sees them: new tokens packed on one axis, keys in the cache.

T new tokens (packed) · B sequences · M blocks of a sequence · H heads · G key heads · c latent
"""

from __future__ import annotations

from array import array
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mull import kernels
from mull.engine.cache import PagedCache
from mull.engine.scheduler import Chunk
from mull.engine.sequence import Sequence

# Up to so many rows a step's tables are made without numpy's vector operations.
_FEW_ROWS = 64


class BlockTables:
    """The block tables of a step's sequences as one matrix, kept from step to step.

    While the same sequences are computed, only the rows whose tables have grown are written anew:
    a table may grow in place, or be replaced by another one.
    """

    def __init__(self) -> None:
        self._seqs: list[Sequence] = []
        self._tables: list[array[int]] = []
        self._lengths: list[int] = []
        self._matrix_BM = np.zeros((0, 0), dtype=np.int32)

    def matrix(self, seqs: list[Sequence]) -> np.ndarray:
        """int32 [B, M], unused entries 0; good until the next call."""
        tables = [seq.block_table for seq in seqs]
        lengths = list(map(len, tables))
        # A preempted sequence comes back with another table.
        if seqs != self._seqs or tables != self._tables:
            self._seqs, self._tables, self._lengths = seqs, tables, [0] * len(seqs)
            self._matrix_BM = np.zeros((len(seqs), max(lengths)), dtype=np.int32)
        if lengths == self._lengths:
            return self._matrix_BM
        missing = max(lengths) - self._matrix_BM.shape[1]
        if missing > 0:
            # A quarter more than needed, so that a long answer does not copy at every block.
            wider = missing + max(lengths) // 4
            self._matrix_BM = np.pad(self._matrix_BM, ((0, 0), (0, wider)))
        for row_M, table, known, length in zip(
            self._matrix_BM, tables, self._lengths, lengths, strict=True
        ):
            if known < length:
                row_M[known:length] = table[known:]
        self._lengths = lengths
        return self._matrix_BM


class PagedSequences:
    """Implements the model's Sequences protocol on the paged cache, always in the absorbed form.

    ids_T int64 and positions_T int64; slots_T, query_starts_B1, context_B (new tokens included) and
    block_table_BM int32, all on the cache's device. slot = block * block_size + offset. `tables`
    carries the block tables over from the step before; with it, an older step's are overwritten.
    """

    absorb = True
    # What native code was told of these rows, for a second pass over them.
    native_step: Any = None

    def __init__(
        self, chunks: list[Chunk], cache: PagedCache, tables: BlockTables | None = None
    ) -> None:
        self.cache = cache
        size, batch = cache.block_size, len(chunks)
        table_BM = (tables or BlockTables()).matrix([chunk.seq for chunk in chunks])
        starts_B = np.array([chunk.start for chunk in chunks])
        counts = [chunk.rows for chunk in chunks]
        rows = sum(counts)
        ids_T = np.array([token for chunk in chunks for token in chunk.tokens])
        if rows <= _FEW_ROWS:
            # In Python: a few numbers for each row cost less than a dozen calls of numpy.
            places = [
                (chunk.seq.block_table, place)
                for chunk, count in zip(chunks, counts, strict=True)
                for place in range(chunk.start, chunk.start + count)
            ]
            positions_T = np.array([place for _, place in places])
            slots_T = np.array(
                [table[place // size] * size + place % size for table, place in places],
                dtype=np.int32,
            )
            starts_B1 = np.array([0, *accumulate(counts)], dtype=np.int32)
            context_B = starts_B + counts
        else:
            counts_B = np.array(counts)
            starts_B1 = np.zeros(batch + 1, dtype=np.int64)
            np.cumsum(counts_B, out=starts_B1[1:])
            row_T = np.repeat(np.arange(batch), counts_B)
            positions_T = np.arange(len(ids_T)) + (starts_B - starts_B1[:-1])[row_T]
            context_B = starts_B + counts_B
            slots_T = table_BM[row_T, positions_T // size] * size + positions_T % size
        self._to_device([ids_T, positions_T], [slots_T, starts_B1, context_B], table_BM)

    @classmethod
    def single_rows(
        cls, ids: list[int], tables: list[array[int]], positions: list[int], cache: PagedCache
    ) -> PagedSequences:
        """One token a sequence at any place that its table reaches: [B] of everything."""
        self = cls.__new__(cls)
        self.cache = cache
        size, batch = cache.block_size, len(tables)
        table_BM = np.zeros((batch, max(map(len, tables))), dtype=np.int32)
        for row_M, table in zip(table_BM, tables, strict=True):
            row_M[: len(table)] = table
        rows_B, positions_B = np.arange(batch), np.array(positions)
        slots_B = table_BM[rows_B, positions_B // size] * size + positions_B % size
        starts_B1 = np.arange(batch + 1)
        narrow = [slots_B, starts_B1, positions_B + 1]
        self._to_device([np.array(ids), positions_B], narrow, table_BM)
        return self

    def _to_device(
        self, wide: list[np.ndarray], narrow: list[np.ndarray], table_BM: np.ndarray
    ) -> None:
        device = self.cache.data.device
        tensors = _on_device(wide, [*narrow, table_BM.ravel()], device)
        self.ids_T, self.positions_T, self.slots_T = tensors[:3]
        self.query_starts_B1, self.context_B, table = tensors[3:]
        self.block_table_BM: Tensor = table.view(table_BM.shape)

    def attend(
        self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, scale: float
    ) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        kernels.write_keys(keys, k_TGd, self.slots_T)
        kernels.write_values(values, v_TGe, self.slots_T)
        return kernels.paged_attention(
            q_THd,
            keys,
            values,
            self.block_table_BM,
            self.query_starts_B1,
            self.context_B,
            scale,
        )

    def attend_latent(
        self, layer: int, q_THc: Tensor, latent_Tc: Tensor, scale: float, value_dim: int
    ) -> Tensor:
        latents = self.cache.latents[layer]
        kernels.write_latents(latents, latent_Tc, self.slots_T, value_dim)
        return kernels.paged_latent_attention(
            q_THc,
            latents,
            self.block_table_BM,
            self.query_starts_B1,
            self.context_B,
            scale,
            value_dim,
        )


def _on_device(
    wide: list[np.ndarray], narrow: list[np.ndarray], device: torch.device
) -> list[Tensor]:
    """One-dimensional tensors: int64 of the first arrays, int32 of the others."""
    narrow = [part.astype(np.int32, copy=False) for part in narrow]
    if device.type == "cpu":
        return [torch.from_numpy(part) for part in (*wide, *narrow)]
    # One buffer, so that one copy takes it all to the device.
    parts = [part.astype(np.int32) for part in wide] + narrow
    packed = torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True)
    tensors = packed.split([len(part) for part in parts])
    return [part.long() for part in tensors[: len(wide)]] + list(tensors[len(wide) :])
