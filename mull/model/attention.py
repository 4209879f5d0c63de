"""Grouped-query attention of llama, qwen2 and qwen3; which biases and norms exist, the config says.

T tokens (packed, no padding) · H query heads · G key heads · d head width · D model
"""

import torch
from torch import Tensor, nn

from mull.model.config import ModelConfig
from mull.model.layers import RMSNorm
from mull.model.rope import rotate
from mull.model.sequences import Sequences


class Attention(nn.Module):
    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        width, qkv_bias = config.hidden_size, config.qkv_bias
        self.q_proj = nn.Linear(width, queries, bias=qkv_bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(width, keys, bias=qkv_bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(width, keys, bias=qkv_bias, device=device, dtype=dtype)
        self.o_proj = nn.Linear(queries, width, bias=config.o_bias, device=device, dtype=dtype)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            eps = config.rms_norm_eps
            self.q_norm = RMSNorm(config.head_dim, eps, device=device, dtype=dtype)
            self.k_norm = RMSNorm(config.head_dim, eps, device=device, dtype=dtype)

    def forward(self, x_TD: Tensor, seqs: Sequences, rope: tuple[Tensor, Tensor]) -> Tensor:
        tokens = x_TD.shape[0]
        q_THd = self.q_norm(self.q_proj(x_TD).view(tokens, -1, self.head_dim))
        k_TGd = self.k_norm(self.k_proj(x_TD).view(tokens, -1, self.head_dim))
        v_TGd = self.v_proj(x_TD).view(tokens, -1, self.head_dim)
        q_THd = rotate(q_THd, rope, interleaved=False)
        k_TGd = rotate(k_TGd, rope, interleaved=False)
        out_THd = seqs.attend(self.layer, q_THd, k_TGd, v_TGd, self.scale)
        return self.o_proj(out_THd.reshape(tokens, -1))
