"""The step's sequences as the model sees them: new tokens packed on one axis, keys in the cache.

T new tokens (packed) · B sequences · M blocks of a sequence · H heads · G key heads · c latent
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mull import kernels
from mull.engine.cache import PagedCache
from mull.engine.scheduler import Chunk


class PagedSequences:
    """Implements the model's Sequences protocol on the paged cache, always in the absorbed form.

    ids_T int64 and positions_T int64; slots_T, query_starts_B1, context_B (new tokens included) and
    block_table_BM int32, all on the cache's device. slot = block * block_size + offset.
    """

    absorb = True

    def __init__(self, chunks: list[Chunk], cache: PagedCache) -> None:
        self.cache = cache
        size, batch = cache.block_size, len(chunks)
        counts_B = np.array([chunk.count for chunk in chunks], dtype=np.int32)
        starts_B = np.array([chunk.start for chunk in chunks], dtype=np.int32)
        context_B = starts_B + counts_B
        query_starts_B1 = np.zeros(batch + 1, dtype=np.int32)
        np.cumsum(counts_B, out=query_starts_B1[1:])
        blocks = -(-int(context_B.max()) // size)
        table_BM = np.zeros((batch, blocks), dtype=np.int32)
        for row_M, chunk in zip(table_BM, chunks, strict=True):
            table = chunk.seq.block_table[:blocks]
            row_M[: len(table)] = table
        ids_T = np.array(
            [
                token
                for chunk in chunks
                for token in chunk.seq.token_ids[chunk.start : chunk.start + chunk.count]
            ],
            dtype=np.int32,
        )
        row_T = np.repeat(np.arange(batch), counts_B)
        positions_T = (
            np.arange(len(ids_T), dtype=np.int32) + (starts_B - query_starts_B1[:-1])[row_T]
        )
        slots_T = table_BM[row_T, positions_T // size] * size + positions_T % size

        parts = [ids_T, positions_T, slots_T, query_starts_B1, context_B, table_BM.ravel()]
        # One buffer, so that one copy takes it all to the device.
        packed = torch.from_numpy(np.concatenate(parts)).to(cache.data.device, non_blocking=True)
        ids, positions, slots, query_starts, context, table = packed.split([len(p) for p in parts])
        self.ids_T: Tensor = ids.long()
        self.positions_T: Tensor = positions.long()
        self.slots_T: Tensor = slots
        self.query_starts_B1: Tensor = query_starts
        self.context_B: Tensor = context
        self.block_table_BM: Tensor = table.view(batch, blocks)
        self.is_decode = len(ids_T) == batch

    def last_rows(self, wanted_B: list[int]) -> Tensor:
        """Rows of the last new tokens of the given sequences."""
        return self.query_starts_B1[1:].long()[torch.tensor(wanted_B, device=self.ids_T.device)] - 1

    def attend(
        self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, scale: float
    ) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        kernels.write_cache(keys, k_TGd, self.slots_T)
        kernels.write_cache(values, v_TGe, self.slots_T)
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
        kernels.write_cache(latents, latent_Tc, self.slots_T)
        return kernels.paged_latent_attention(
            q_THc,
            latents,
            self.block_table_BM,
            self.query_starts_B1,
            self.context_B,
            scale,
            value_dim,
        )
