"""Multi-token prediction (DeepSeek-V3 report, section 2.2, equations 21 to 23).

h'_i = M [RMSNorm(h_i); RMSNorm(Emb(t_{i+k}))], one decoder layer over h', a norm, the shared head.
The equation writes h first; the published checkpoint's `eh_proj` holds its columns the other
way round, embedding first ("e, h"), and so do vLLM and SGLang: we follow the checkpoint. Also as
there, h of the first depth is the main model's output *after* its final norm.

T tokens (packed, no padding) · D model
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mull.model.config import ModelConfig
from mull.model.decoder import DecoderLayer
from mull.model.layers import RMSNorm
from mull.model.sequences import Sequences

if TYPE_CHECKING:
    from mull.model.transformer import Decoder


class SharedHead(nn.Module):
    """The norm before the head; the head itself is the main model's."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, device=device, dtype=dtype)


class NextTokenModule(DecoderLayer):
    """One MTP depth; a decoder layer with three more parts, flat as in the checkpoint."""

    def __init__(
        self,
        config: ModelConfig,
        depth: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config, config.num_hidden_layers + depth, device=device, dtype=dtype)
        width, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(width, eps, device=device, dtype=dtype)
        self.hnorm = RMSNorm(width, eps, device=device, dtype=dtype)
        self.eh_proj = nn.Linear(2 * width, width, bias=False, device=device, dtype=dtype)
        self.shared_head = SharedHead(config, device=device, dtype=dtype)

    def forward(  # type: ignore[override]
        self,
        hidden_TD: Tensor,
        next_ids_T: Tensor,
        seqs: Sequences,
        decoder: Decoder,
    ) -> Tensor:
        """hidden_TD: of the depth before; next_ids_T: the tokens that follow. Returns [T, D].

        decoder: lends its embedding and positions.
        """
        embedded_TD = decoder.embed_tokens(next_ids_T)
        joined_T2D = torch.cat((self.enorm(embedded_TD), self.hnorm(hidden_TD)), dim=-1)
        rope = decoder.rope(seqs.positions_T)
        return self.shared_head.norm(super().forward(self.eh_proj(joined_T2D), seqs, rope))
