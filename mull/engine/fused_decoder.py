"""Embedding, every decoder layer and the final norm as one native call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mull.engine.fused import FusedLayers
from mull.engine.fused_latent import FusedLatentLayers
from mull.kernels import PackedLinear
from mull.model.rope import Rope
from mull.model.sequences import Sequences


class PackedEmbedding(nn.Module):
    """Token embedding read out of packed rows: those of the head where the model ties the two."""

    def __init__(self, rows: PackedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.head, self.dtype = rows, dtype

    def forward(self, ids_T: Tensor) -> Tensor:
        """[T, D] in dtype."""
        return self.head.rows(ids_T).to(self.dtype)


class FusedDecoder(nn.Module):
    """Called like the Decoder whose place it takes."""

    def __init__(
        self, embedding: PackedEmbedding, layers: FusedLayers | FusedLatentLayers, rope: Rope
    ) -> None:
        super().__init__()
        self.embed_tokens = embedding
        self.layers = nn.ModuleList([layers])
        self._run = layers.forward  # without the way through two modules
        self.rope = rope

    def forward(self, ids_T: Tensor, seqs: Sequences) -> Tensor:
        """[T, D] float32."""
        return self._run(ids_T, seqs, self.embed_tokens.head, self.rope)
