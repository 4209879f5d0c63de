"""Where attention finds its keys: the protocol the modules talk to, and its form without a cache.

The modules compute the new tokens' queries, keys and values; a Sequences object knows which tokens
belong together and what came before them. The engine's paged cache is the other implementation.

T tokens (packed, no padding) · H query heads · G key heads · d, e head widths · c latent width
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mull.errors import ModelError
from mull.model.short_attention import ShortLayout, short_attention

# Up to here the squares of scores, kept for the backward pass, are small beside the activations.
_SHORT = 256


class Sequences(Protocol):
    """Several sequences' new tokens on one axis."""

    positions_T: Tensor  # int64, each token's place in its own sequence
    absorb: bool  # MLA: work on the latent (True) or expand keys and values (False)

    def attend(
        self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, scale: float
    ) -> Tensor:
        """Causal attention inside each sequence over what it has seen so far; returns [T, H, e]."""
        ...

    def attend_latent(
        self, layer: int, q_THc: Tensor, latent_Tc: Tensor, scale: float, value_dim: int
    ) -> Tensor:
        """The same over one shared key per token, whose first `value_dim` numbers are the value."""
        ...


class PackedSequences:
    """Whole sequences side by side, nothing cached: training, plain logits, the reference."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        positions_T: Tensor | None = None,
        device: torch.device | str | None = None,
        absorb: bool = False,
    ) -> None:
        """positions_T: on the host, where they are not 0, 1, 2, ... in every sequence."""
        if not all(length > 0 for length in lengths):
            raise ModelError("a packed sequence has no tokens; leave empty sequences out")
        self.lengths = list(lengths)
        self.absorb = absorb
        # Built on the host in one piece: one copy to the device, no synchronisation.
        if positions_T is None:
            ranges = [torch.arange(length, device="cpu") for length in self.lengths]
            positions_T = torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.int64)
        self.positions_T = positions_T.to(device) if device is not None else positions_T
        self._lay_out(device)

    def _lay_out(self, device: torch.device | str | None) -> None:
        """Tells short sequences from long ones, which torch's fused kernel serves one by one."""
        starts = [0, *accumulate(self.lengths)][:-1]
        spans = list(zip(self.lengths, starts, strict=True))
        short = [span for span in spans if span[0] <= _SHORT]
        long = [span for span in spans if span[0] > _SHORT]
        self._long_lengths = [length for length, _ in long]
        self._short = None
        if len(short) > 1 and not self.absorb:
            self._short = ShortLayout(short, device)
        self._back_T: Tensor | None = None
        if self._short is not None and long:
            rows = [torch.arange(s, s + n, device="cpu") for n, s in (*short, *long)]
            self._long_T = torch.cat(rows[len(short) :]).to(device)
            self._back_T = torch.cat(rows).argsort().to(device)

    def attend(
        self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, scale: float
    ) -> Tensor:
        if self._short is None:
            return _fused_attention(self.lengths, q_THd, k_TGd, v_TGe, scale)
        short_THe = short_attention(self._short, q_THd, k_TGd, v_TGe, scale)
        if self._back_T is None:
            return short_THe
        q, k, v = (x.index_select(0, self._long_T) for x in (q_THd, k_TGd, v_TGe))
        long_THe = _fused_attention(self._long_lengths, q, k, v, scale)
        return torch.cat((short_THe, long_THe)).index_select(0, self._back_T)

    def attend_latent(
        self, layer: int, q_THc: Tensor, latent_Tc: Tensor, scale: float, value_dim: int
    ) -> Tensor:
        parts = [
            _causal_latent_attention(q, latent, scale, value_dim)
            for q, latent in zip(
                q_THc.split(self.lengths), latent_Tc.split(self.lengths), strict=True
            )
        ]
        return torch.cat(parts)


def _fused_attention(
    lengths: list[int], q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, scale: float
) -> Tensor:
    width, value_width = q_THd.shape[-1], v_TGe.shape[-1]
    if width > value_width:
        # Equal widths keep torch's fused kernel, which never holds T x T scores (naive MLA).
        v_TGe = F.pad(v_TGe, (0, width - value_width))
    parts = [
        _causal_attention(q, k, v, scale)
        for q, k, v in zip(
            q_THd.split(lengths), k_TGd.split(lengths), v_TGe.split(lengths), strict=True
        )
    ]
    return torch.cat(parts)[..., :value_width]


def _causal_attention(q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, scale: float) -> Tensor:
    out_1HTe = F.scaled_dot_product_attention(
        q_THd.transpose(0, 1)[None],
        k_TGd.transpose(0, 1)[None],
        v_TGe.transpose(0, 1)[None],
        is_causal=True,
        scale=scale,
        enable_gqa=q_THd.shape[1] != k_TGd.shape[1],
    )
    return out_1HTe[0].transpose(0, 1)


def _causal_latent_attention(
    q_THc: Tensor, latent_Tc: Tensor, scale: float, value_dim: int
) -> Tensor:
    # Plain products over the shared key: expanding it to every head for SDPA is many times slower.
    scores_HTT = q_THc.transpose(0, 1) @ latent_Tc.T * scale
    tokens = latent_Tc.shape[0]
    future_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=latent_Tc.device).triu(1)
    scores_HTT = scores_HTT.masked_fill(future_TT, float("-inf"))
    weights_HTT = scores_HTT.softmax(dim=-1, dtype=torch.float32).to(latent_Tc.dtype)
    return (weights_HTT @ latent_Tc[:, :value_dim]).transpose(0, 1)
