"""Rows of weights as the bytes of a GGUF tensor, in torch: the block formats of ggml.

Q8_0 and Q4_0 are ggml's reference quantisers to the bit; Q6_K searches scales as ggml's does.
Layouts: ggml-common.h of llama.cpp (block_q8_0, block_q4_0, block_q6_K).

R rows · C columns · N blocks
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import torch
from torch import Tensor

GgmlType = gguf.GGMLQuantizationType


def block_size(kind: GgmlType) -> int:
    """How many values share a block; a row must be a multiple of it."""
    return gguf.GGML_QUANT_SIZES[kind][0]


def row_bytes(kind: GgmlType, columns: int) -> int:
    values, size = gguf.GGML_QUANT_SIZES[kind]
    return columns // values * size


def to_bytes(rows_RC: Tensor, kind: GgmlType) -> Tensor:
    """uint8 [R, bytes of a row] of float rows; columns must be a multiple of `block_size(kind)`."""
    packed = _PACKERS[kind](rows_RC.float().contiguous())
    return packed.reshape(rows_RC.shape[0], -1)


def _plain(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda rows_RC: rows_RC.to(dtype).view(torch.uint8)


def _q8_0(rows_RC: Tensor) -> Tensor:
    blocks_N32 = rows_RC.view(-1, 32)
    scale_N1 = blocks_N32.abs().amax(1, keepdim=True) / 127
    levels = _round_half_away(blocks_N32 * _inverse(scale_N1)).to(torch.int8)
    return torch.cat((_half_bytes(scale_N1), levels.view(torch.uint8)), 1)


def _q4_0(rows_RC: Tensor) -> Tensor:
    """The largest value, with its sign, becomes level -8."""
    blocks_N32 = rows_RC.view(-1, 32)
    largest_N1 = blocks_N32.gather(1, blocks_N32.abs().max(1, keepdim=True).indices)
    scale_N1 = largest_N1 / -8
    levels = (blocks_N32 * _inverse(scale_N1)).add_(8.5).to(torch.uint8).clamp_(max=15)
    low, high = levels.split(16, dim=1)
    return torch.cat((_half_bytes(scale_N1), low | high << 4), 1)


def _q6_k(rows_RC: Tensor) -> Tensor:
    """256 values: 16 groups with an 8-bit scale each, and one float16 for those scales."""
    groups_N16x16 = rows_RC.view(-1, 16, 16)
    scales_N16 = _best_scales(rows_RC.view(-1, 16)).view(-1, 16)
    largest_N1 = scales_N16.gather(1, scales_N16.abs().max(1, keepdim=True).indices)
    inverse_N1 = torch.where(largest_N1.abs() < 1e-15, 0.0, -128 / largest_N1)
    super_N1 = _inverse(inverse_N1)
    steps_N16 = (inverse_N1 * scales_N16).round_().clamp_(max=127)
    # A reader multiplies the float16 by the 8-bit scale: levels are chosen for that product.
    products = super_N1.half().float() * steps_N16
    levels = (groups_N16x16 * _inverse(products)[..., None]).round_().clamp_(-32, 31) + 32
    # Two halves of 128, each with its four quarters side by side in the bits.
    quarters = levels.to(torch.uint8).view(-1, 2, 4, 32)
    low = quarters[:, :, :2] & 15 | (quarters[:, :, 2:] & 15) << 4
    high = quarters >> 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return torch.cat(
        (
            low.reshape(-1, 128),
            high.reshape(-1, 64),
            steps_N16.to(torch.int8).view(torch.uint8),
            _half_bytes(super_N1),
        ),
        1,
    )


def _best_scales(groups_N16: Tensor) -> Tensor:
    """[N]: of 19 scales about the one that maps the largest value to -32, the least weighted error.

    Errors are weighted by the squared value; the scale is the least-squares one for its levels
    (make_qx_quants of ggml).
    """
    values_16N = groups_N16.T.contiguous()  # sums over the first dimension run in vectors
    largest_N = values_16N.gather(0, values_16N.abs().max(0, keepdim=True).indices)[0]
    is_zero_N = largest_N.abs() < 1e-15
    weights_16N = values_16N * values_16N
    weighted_16N = weights_16N * values_16N
    best_N = gain_N = torch.zeros_like(largest_N)
    for step in (0, *range(-9, 0), *range(1, 10)):
        inverse_N = torch.where(is_zero_N, 0.0, -(32 + 0.1 * step) / largest_N)
        levels_16N = (values_16N * inverse_N).round_().clamp_(-32, 31)
        along_N = (weighted_16N * levels_16N).sum(0)
        size_N = (weights_16N * levels_16N.square_()).sum(0)
        scale_N = along_N * _inverse(size_N)
        is_better_N = along_N * scale_N > gain_N
        gain_N = torch.where(is_better_N, along_N * scale_N, gain_N)
        best_N = torch.where(is_better_N, scale_N, best_N)
    return best_N


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values == 0, 0.0, 1 / values)


def _round_half_away(values: Tensor) -> Tensor:
    """C's roundf; torch rounds halves to even."""
    whole = values.trunc()
    return whole + (values - whole).mul_(2).trunc_()


def _half_bytes(values_N1: Tensor) -> Tensor:
    return values_N1.half().view(torch.uint8)


_PACKERS: dict[GgmlType, Callable[[Tensor], Tensor]] = {
    GgmlType.F32: _plain(torch.float32),
    GgmlType.F16: _plain(torch.float16),
    GgmlType.BF16: _plain(torch.bfloat16),
    GgmlType.Q8_0: _q8_0,
    GgmlType.Q4_0: _q4_0,
    GgmlType.Q6_K: _q6_k,
}
