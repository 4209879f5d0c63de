"""Causal attention inside many short sequences at once, forward and backward by hand.

Native code takes what it can (kernels/training.py); the rest of this is its form in torch. There
one call for each sequence costs more than its arithmetic, and torch's fused kernel on the CPU is
slow at such lengths. So sequences of like length are gathered side by side, right-padded to the
longest of their bucket: a causal query never looks at what comes after it, so padding changes
nothing, and its own outputs are left behind. The softmax's results are kept for the backward pass:
this is for sequences whose square is small beside their activations.

T tokens (packed) · P padded tokens of all buckets · B sequences of a bucket · L its length ·
H query heads · G key heads · R = H / G · d, e head widths
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mull.kernels import training

# A bucket's longest sequence is at most this many times its shortest, and a few tokens.
_STRETCH, _SLACK = 1.2, 4


@dataclass(frozen=True)
class _Bucket:
    sequences: int
    length: int
    start: int  # of its first row, in padded tokens


class ShortLayout:
    """Where each token of some sequences of a packed batch lies; in torch's form, in padded
    buckets."""

    def __init__(self, spans: Sequence[tuple[int, int]], device: torch.device | str | None) -> None:
        """spans: (length, first token on the packed axis) of each sequence, in packed order."""
        self._device = device
        self._spans = list(spans)
        self.tokens = sum(length for length, _ in spans)
        self._by_heads: dict[int, tuple[Tensor, Tensor]] = {}

    @cached_property
    def spans(self) -> training.Spans:
        return training.Spans.of(self._spans)

    @property
    def buckets(self) -> list[_Bucket]:
        return self._padded[0]

    @cached_property
    def _padded(self) -> tuple[list[_Bucket], list[Tensor], list[Tensor]]:
        """The buckets; of each, which token every padded place takes, and which are its own."""
        by_length = sorted(self._spans)
        buckets: list[_Bucket] = []
        rows, own, begin, padded = [], [], 0, 0
        while begin < len(by_length):
            limit = by_length[begin][0] * _STRETCH + _SLACK
            end = begin
            while end < len(by_length) and by_length[end][0] <= limit:
                end += 1
            members = torch.tensor(by_length[begin:end], device="cpu")
            length = int(members[-1, 0])
            places_L = torch.arange(length, device="cpu")
            is_own_BL = places_L < members[:, :1]
            # Padding repeats a sequence's last token: any finite numbers do.
            rows.append(members[:, 1:] + torch.minimum(places_L, members[:, :1] - 1))
            own.append(is_own_BL)
            buckets.append(_Bucket(end - begin, length, padded))
            padded += (end - begin) * length
            begin = end
        return buckets, rows, own

    def places(self, heads: int) -> tuple[Tensor, Tensor]:
        """For [T x heads, width] and its padded form [P x heads, width], whose rows go by bucket,
        sequence, head, token: (which row each padded row takes, where each of the sequences' rows
        lies, in packed order)."""
        if heads not in self._by_heads:
            taken, own = [], []
            for rows_BL, own_BL in zip(*self._padded[1:], strict=True):
                head_H1 = torch.arange(heads, device="cpu")[:, None]
                taken.append((rows_BL[:, None] * heads + head_H1).flatten())
                own.append(own_BL[:, None].expand(-1, heads, -1).flatten())
            taken_P, own_P = torch.cat(taken), torch.cat(own)
            places_P = own_P.nonzero()[:, 0]
            back_T = places_P[taken_P[places_P].argsort()]
            self._by_heads[heads] = taken_P.to(self._device), back_T.to(self._device)
        return self._by_heads[heads]


def short_attention(
    layout: ShortLayout, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, scale: float
) -> Tensor:
    """[T', H, e] for the layout's sequences only, in packed order. Reckoned in float32 at least;
    the gradients' products are in the inputs' type."""
    by = _NativeAttention if training.can_attend(q_THd, k_TGd, v_TGe) else _ShortAttention
    out_THe: Tensor = by.apply(q_THd, k_TGd, v_TGe, scale, layout)
    return out_THe


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, scale: float, layout: ShortLayout
    ) -> Tensor:
        out_THe, softmax = training.attended(
            q_THd, k_TGd, v_TGe, layout.spans, layout.tokens, scale
        )
        ctx.save_for_backward(q_THd, k_TGd, v_TGe)
        ctx.layout, ctx.scale, ctx.softmax = layout, scale, softmax
        return out_THe

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_THe: Tensor) -> tuple[Any, ...]:
        q_THd, k_TGd, v_TGe = ctx.saved_tensors
        gradients = training.attended_backward(
            q_THd, k_TGd, v_TGe, ctx.layout.spans, ctx.scale, ctx.softmax, upstream_THe
        )
        return (*gradients, None, None)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, scale: float, layout: ShortLayout
    ) -> Tensor:
        heads, groups = q_THd.shape[1], k_TGd.shape[1]
        _, back_T = layout.places(heads)
        with torch.autocast(q_THd.device.type, enabled=False):
            q_Pd, k_Pd, v_Pe = (_padded(x, layout) for x in (q_THd, k_TGd, v_TGe))
            wide_q_Pd, wide_k_Pd, wide_v_Pe = _wide(q_Pd), _wide(k_Pd), _wide(v_Pe)
            out_Pe = wide_v_Pe.new_empty(len(q_Pd), v_Pe.shape[1])
            weights = []
            for bucket in layout.buckets:
                q, out = (_of(bucket, x, heads, groups) for x in (wide_q_Pd, out_Pe))
                k, v = (_of(bucket, x, groups, groups) for x in (wide_k_Pd, wide_v_Pe))
                mask = _causal(bucket.length, heads // groups, q)
                scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale)
                weight = scores.softmax(-1)
                torch.bmm(weight, v, out=out)
                weights.append(weight.to(v_Pe.dtype))
            out_THe = out_Pe.index_select(0, back_T).view(-1, heads, v_Pe.shape[1])
        ctx.save_for_backward(q_Pd, k_Pd, v_Pe, *weights)
        ctx.layout, ctx.scale, ctx.heads, ctx.groups = layout, scale, heads, groups
        ctx.tokens = len(q_THd)
        return out_THe.to(v_TGe.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_THe: Tensor) -> tuple[Any, ...]:
        q_Pd, k_Pd, v_Pe, *weights = ctx.saved_tensors
        heads, groups, layout = ctx.heads, ctx.groups, ctx.layout
        with torch.autocast(q_Pd.device.type, enabled=False):
            upstream_Pe = _spread(upstream_THe, layout)
            of_q, of_k, of_v = (torch.empty_like(x) for x in (q_Pd, k_Pd, v_Pe))
            for bucket, weight in zip(layout.buckets, weights, strict=True):
                q, up, out_q = (_of(bucket, x, heads, groups) for x in (q_Pd, upstream_Pe, of_q))
                k, v, out_k, out_v = (
                    _of(bucket, x, groups, groups) for x in (k_Pd, v_Pe, of_k, of_v)
                )
                torch.bmm(weight.transpose(1, 2), up, out=out_v)
                of_weight = torch.bmm(up, v.transpose(1, 2))
                of_score = torch._softmax_backward_data(of_weight, weight, -1, weight.dtype)
                _scaled_product(of_score, k, ctx.scale, out_q)
                _scaled_product(of_score.transpose(1, 2), q, ctx.scale, out_k)
            results = [
                _packed(x, layout, count, ctx.tokens)
                for x, count in ((of_q, heads), (of_k, groups), (of_v, groups))
            ]
        return (*results, None, None)


def _padded(x_THd: Tensor, layout: ShortLayout) -> Tensor:
    return x_THd.reshape(-1, x_THd.shape[-1]).index_select(0, layout.places(x_THd.shape[1])[0])


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _spread(upstream_THe: Tensor, layout: ShortLayout) -> Tensor:
    """The upstream gradient of the layout's own tokens, in padded order, nothing at padding."""
    heads, width = upstream_THe.shape[1:]
    taken_P, back_T = layout.places(heads)
    padded_Pe = upstream_THe.new_zeros(len(taken_P), width)
    return padded_Pe.index_copy_(0, back_T, upstream_THe.reshape(-1, width))


def _packed(x_Pd: Tensor, layout: ShortLayout, heads: int, tokens: int) -> Tensor:
    """Back on the packed axis; zeros at tokens of sequences that are not the layout's."""
    taken_P, back_T = layout.places(heads)
    if len(back_T) == tokens * heads:
        rows = x_Pd.index_select(0, back_T)
    else:
        rows = x_Pd.new_zeros(tokens * heads, x_Pd.shape[1])
        rows.index_copy_(0, taken_P[back_T], x_Pd.index_select(0, back_T))
    return rows.view(tokens, heads, -1)


def _of(bucket: _Bucket, x_Pd: Tensor, heads: int, groups: int) -> Tensor:
    """[B x G, R x L, width]: a bucket's rows, the heads that share a key head after each other."""
    rows = bucket.sequences * bucket.length * heads
    start = bucket.start * heads
    batch = bucket.sequences * groups
    return x_Pd[start : start + rows].view(batch, rows // batch, -1)


def _causal(length: int, repeats: int, like: Tensor) -> Tensor:
    """[R x L, L]: 0 where a query may look, -inf after it."""
    mask_LL = like.new_full((length, length), float("-inf")).triu_(1)
    return mask_LL.repeat(repeats, 1)


def _scaled_product(a: Tensor, b: Tensor, scale: float, out: Tensor) -> None:
    torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
