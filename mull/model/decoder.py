"""One decoder layer: attention and MLP, each behind a norm and beside a residual.

T tokens (packed, no padding) · D model
"""

import torch
from torch import Tensor, nn

from mull.model.attention import Attention
from mull.model.config import ModelConfig
from mull.model.layers import GatedMLP, RMSNorm
from mull.model.mla import LatentAttention
from mull.model.moe import MixtureOfExperts
from mull.model.sequences import Sequences


class DecoderLayer(nn.Module):
    """`layer` is the index under which Sequences keep this layer's keys."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        attention = LatentAttention if config.is_mla else Attention
        self.input_layernorm = RMSNorm(width, eps, device=device, dtype=dtype)
        self.self_attn = attention(config, layer, device=device, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(width, eps, device=device, dtype=dtype)
        self.mlp: nn.Module
        if config.is_moe_layer(layer):
            self.mlp = MixtureOfExperts(config, device=device, dtype=dtype)
        else:
            self.mlp = GatedMLP(
                width, config.intermediate_size, bias=config.mlp_bias, device=device, dtype=dtype
            )

    def forward(self, x_TD: Tensor, seqs: Sequences, rope: tuple[Tensor, Tensor]) -> Tensor:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), seqs, rope)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))
