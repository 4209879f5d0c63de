"""All chosen experts of all tokens as one differentiable operation, forward and backward by hand.

Autograd would spend more time here on bookkeeping than on products: scattered sums for every
gather, a stack of gradients put together out of slices. Written out, each token's rows are found
again by the inverse permutation, and every expert's gradient is computed where it belongs.

T tokens · S = T x k rows, one for each token and chosen expert, sorted by expert · D model ·
E experts · F expert hidden width
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mull.kernels import training


def grouped_experts(
    x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Sum over each token's experts of weight x down(silu(gate(x)) * up(x)), [T, D].

    Products in the type of x (under autocast in its type), the weighted sum in float32 or wider.
    """
    kind, dtype = x_TD.device.type, x_TD.dtype
    if torch.is_autocast_enabled(kind):
        narrow = torch.get_autocast_dtype(kind)
        x_TD, gate_up_E2FD, down_EDF = (x.to(narrow) for x in (x_TD, gate_up_E2FD, down_EDF))
    out_TD: Tensor = _GroupedExperts.apply(x_TD, weights_Tk, experts_Tk, gate_up_E2FD, down_EDF)
    return out_TD.to(dtype)


class _GroupedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_Tk: Tensor,
        experts_Tk: Tensor,
        gate_up_E2FD: Tensor,
        down_EDF: Tensor,
    ) -> Tensor:
        order_S = experts_Tk.flatten().argsort(stable=True)
        back_S = torch.empty_like(order_S)
        back_S[order_S] = torch.arange(len(order_S), device=order_S.device)
        # A token's terms meet in the order of its experts, whatever their ranks: near-ties of the
        # next router are then decided alike by everybody who sums so (transformers does).
        by_expert_S = back_S.view_as(experts_Tk).sort(dim=1).values.flatten()
        tokens_S = order_S // experts_Tk.shape[1]
        # The one host synchronisation of a layer: how many rows each expert gets.
        counts = torch.bincount(experts_Tk.flatten(), minlength=len(down_EDF)).tolist()
        with torch.autocast(x_TD.device.type, enabled=False):
            x_SD = x_TD.index_select(0, tokens_S)
            both_S2F = x_SD.new_empty(len(x_SD), gate_up_E2FD.shape[1])
            for expert, rows in _parts(counts):
                torch.mm(x_SD[rows], gate_up_E2FD[expert].T, out=both_S2F[rows])
            inner_SF = _gated(*both_S2F.chunk(2, dim=-1))
            out_SD = torch.empty_like(x_SD)
            for expert, rows in _parts(counts):
                torch.mm(inner_SF[rows], down_EDF[expert].T, out=out_SD[rows])
            weights_S = weights_Tk.flatten()[order_S]
            out_TD = _summed(out_SD, by_expert_S.view_as(experts_Tk), weights_S)
        ctx.save_for_backward(
            x_SD, both_S2F, out_SD, weights_S, back_S, tokens_S, gate_up_E2FD, down_EDF
        )
        ctx.counts, ctx.chosen = counts, weights_Tk.shape
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_TD: Tensor) -> tuple[Any, ...]:
        x_SD, both_S2F, out_SD, weights_S, back_S, tokens_S, gate_up_E2FD, down_EDF = (
            ctx.saved_tensors
        )
        counts, shape = ctx.counts, ctx.chosen
        with torch.autocast(x_SD.device.type, enabled=False):
            of_out_SD, of_weights_S = _dealt(upstream_TD, tokens_S, weights_S, out_SD)
            of_weights = of_weights_S.index_select(0, back_S).view(shape)
            inner_SF, of_both_S2F = _gated_backward(both_S2F, of_out_SD, down_EDF, counts)
            of_gate_up = of_down = of_x = None
            if ctx.needs_input_grad[4]:
                of_down = _stack_gradient(of_out_SD, inner_SF, down_EDF, counts)
            if ctx.needs_input_grad[3]:
                of_gate_up = _stack_gradient(of_both_S2F, x_SD, gate_up_E2FD, counts)
            if ctx.needs_input_grad[0]:
                of_x_SD = torch.empty_like(x_SD)
                for expert, rows in _parts(counts):
                    torch.mm(of_both_S2F[rows], gate_up_E2FD[expert], out=of_x_SD[rows])
                of_x = _summed(of_x_SD, back_S.view(shape))
        return of_x, of_weights, None, of_gate_up, of_down


def _gated(gate_SF: Tensor, up_SF: Tensor) -> Tensor:
    if training.can_train(gate_SF):
        return training.gated(gate_SF, up_SF)
    return F.silu(gate_SF).mul_(up_SF)


def _summed(table_SD: Tensor, places_Tk: Tensor, weights_S: Tensor | None = None) -> Tensor:
    """Of every token the sum of its rows, weighted ones in float32 as the weights are: up to eight
    bfloat16 terms meet in one sum."""
    if training.can_train(table_SD) and table_SD.numel():
        return training.summed(table_SD, places_Tk, weights_S)
    weighted_SD = table_SD if weights_S is None else table_SD * weights_S[:, None]
    terms_TkD = weighted_SD.index_select(0, places_Tk.flatten()).view(*places_Tk.shape, -1)
    if weights_S is None:
        return terms_TkD.sum(1)
    sum_TD = terms_TkD[:, 0].clone()
    for rank in range(1, places_Tk.shape[1]):
        sum_TD += terms_TkD[:, rank]
    return sum_TD


def _dealt(
    upstream_TD: Tensor, tokens_S: Tensor, weights_S: Tensor, out_SD: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the weighted sum: of its rows, in their type, and of the weights."""
    if training.can_train(upstream_TD, weights_S, out_SD):
        return training.dealt(upstream_TD, tokens_S, weights_S, out_SD)
    upstream_SD = upstream_TD.index_select(0, tokens_S)
    of_weights_S = torch.linalg.vecdot(upstream_SD, out_SD.to(upstream_SD.dtype))
    return upstream_SD.mul_(weights_S[:, None]).to(out_SD.dtype), of_weights_S


def _gated_backward(
    both_S2F: Tensor, of_out_SD: Tensor, down_EDF: Tensor, counts: list[int]
) -> tuple[Tensor, Tensor]:
    """(silu(gate) * up once more, the gradient of gate and up side by side)."""
    gate_SF, up_SF = both_S2F.chunk(2, dim=-1)
    of_inner_SF = torch.empty_like(gate_SF, memory_format=torch.contiguous_format)
    for expert, rows in _parts(counts):
        torch.mm(of_out_SD[rows], down_EDF[expert], out=of_inner_SF[rows])
    of_both_S2F = torch.empty_like(both_S2F)
    of_gate_SF, of_up_SF = of_both_S2F.chunk(2, dim=-1)
    if training.can_train(both_S2F):
        inner_SF = torch.empty_like(of_inner_SF)
        training.gated_backward(gate_SF, up_SF, of_inner_SF, of_gate_SF, of_up_SF, inner_SF)
        return inner_SF, of_both_S2F
    silu_SF = F.silu(gate_SF)
    torch.mul(of_inner_SF, silu_SF, out=of_up_SF)
    of_gate_SF.copy_(torch.ops.aten.silu_backward(of_inner_SF.mul_(up_SF), gate_SF))
    return silu_SF.mul_(up_SF), of_both_S2F


def _stack_gradient(
    of_out_SN: Tensor, in_SK: Tensor, stack_ENK: Tensor, counts: list[int]
) -> Tensor:
    of_stack_ENK = torch.empty_like(stack_ENK)
    for expert, count in enumerate(counts):
        if not count:
            of_stack_ENK[expert].zero_()
    for expert, rows in _parts(counts):
        torch.mm(of_out_SN[rows].T, in_SK[rows], out=of_stack_ENK[expert])
    return of_stack_ENK


def _parts(counts: list[int]) -> Iterator[tuple[int, slice]]:
    """Experts with work, and their rows."""
    start = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, slice(start, start + count)
        start += count
