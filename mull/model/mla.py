"""Multi-head latent attention (DeepSeek-V3 report, section 2.1.1), in its two equal forms.

What is cached per token is one latent and one roped key for all heads. The naive form expands keys
and values from it; the absorbed form folds the expansion into query and output, so that attention
is multi-query over the latent itself.

T tokens (packed, no padding) · H heads · D model · K latent · n, r unroped and roped head width ·
v value width · c = K + r, the cached width
"""

import torch
from torch import Tensor, nn

from mull.model.config import ModelConfig
from mull.model.layers import RMSNorm
from mull.model.rope import latent_softmax_scale, rotate
from mull.model.sequences import Sequences

# DeepSeek's own code and transformers fix this, whatever rms_norm_eps says.
_LATENT_NORM_EPS = 1e-6


class LatentAttention(nn.Module):
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
        self.heads = config.num_attention_heads
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.latent_rank, self.value_dim = config.kv_lora_rank or 0, config.v_head_dim
        self.interleaved = config.rope_interleave
        self.scale = latent_softmax_scale(config)
        width, bias, q_rank = config.hidden_size, config.attention_bias, config.q_lora_rank
        queries = self.heads * config.qk_head_dim
        self.has_q_latent = q_rank is not None
        if q_rank is None:
            self.q_proj = nn.Linear(width, queries, bias=False, device=device, dtype=dtype)
        else:
            self.q_a_proj = nn.Linear(width, q_rank, bias=bias, device=device, dtype=dtype)
            self.q_a_layernorm = RMSNorm(q_rank, _LATENT_NORM_EPS, device=device, dtype=dtype)
            self.q_b_proj = nn.Linear(q_rank, queries, bias=False, device=device, dtype=dtype)
        self.kv_a_proj_with_mqa = nn.Linear(
            width, config.latent_dim, bias=bias, device=device, dtype=dtype
        )
        self.kv_a_layernorm = RMSNorm(
            self.latent_rank, _LATENT_NORM_EPS, device=device, dtype=dtype
        )
        expanded = self.heads * (self.nope_dim + self.value_dim)
        self.kv_b_proj = nn.Linear(
            self.latent_rank, expanded, bias=False, device=device, dtype=dtype
        )
        self.o_proj = nn.Linear(
            self.heads * self.value_dim, width, bias=bias, device=device, dtype=dtype
        )

    def forward(self, x_TD: Tensor, seqs: Sequences, rope: tuple[Tensor, Tensor]) -> Tensor:
        q_THn, q_THr = self._queries(x_TD, rope)
        latent_TK, key_Tr = self._latent(x_TD, rope)
        attend = self._absorbed if seqs.absorb else self._naive
        out_THv = attend(seqs, q_THn, q_THr, latent_TK, key_Tr)
        return self.o_proj(out_THv.reshape(x_TD.shape[0], -1))

    def _queries(self, x_TD: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self.has_q_latent:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TD)))
        else:
            q = self.q_proj(x_TD)
        q_THq = q.view(x_TD.shape[0], self.heads, -1)
        q_THn, q_THr = q_THq.split((self.nope_dim, self.rope_dim), dim=-1)
        return q_THn, rotate(q_THr, rope, interleaved=self.interleaved)

    def _latent(self, x_TD: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(normed latent [T, K], roped key shared by all heads [T, r]): what a cache keeps."""
        latent_Tc = self.kv_a_proj_with_mqa(x_TD)
        latent_TK, key_Tr = latent_Tc.split((self.latent_rank, self.rope_dim), dim=-1)
        key_T1r = rotate(key_Tr[:, None], rope, interleaved=self.interleaved)
        return self.kv_a_layernorm(latent_TK), key_T1r[:, 0]

    def _naive(
        self, seqs: Sequences, q_THn: Tensor, q_THr: Tensor, latent_TK: Tensor, key_Tr: Tensor
    ) -> Tensor:
        kv_THx = self.kv_b_proj(latent_TK).view(latent_TK.shape[0], self.heads, -1)
        k_THn, v_THv = kv_THx.split((self.nope_dim, self.value_dim), dim=-1)
        k_THr = key_Tr[:, None].expand(-1, self.heads, -1)
        q_THq, k_THq = torch.cat((q_THn, q_THr), -1), torch.cat((k_THn, k_THr), -1)
        return seqs.attend(self.layer, q_THq, k_THq, v_THv, self.scale)

    def _absorbed(
        self, seqs: Sequences, q_THn: Tensor, q_THr: Tensor, latent_TK: Tensor, key_Tr: Tensor
    ) -> Tensor:
        up_HxK = self.kv_b_proj.weight.view(self.heads, -1, self.latent_rank)
        up_key_HnK, up_value_HvK = up_HxK.split((self.nope_dim, self.value_dim), dim=1)
        q_THK = torch.einsum("thn,hnk->thk", q_THn, up_key_HnK)
        latent_Tc = torch.cat((latent_TK, key_Tr), dim=-1)
        q_THc = torch.cat((q_THK, q_THr), dim=-1)
        out_THK = seqs.attend_latent(self.layer, q_THc, latent_Tc, self.scale, self.latent_rank)
        return torch.einsum("thk,hvk->thv", out_THK, up_value_HvK)
