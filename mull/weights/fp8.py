"""FP8 weights as DeepSeek-V3 publishes them: e4m3 values and a float32 scale per 128x128 block.

`X.weight` is float8_e4m3fn [N, K]; `X.weight_scale_inv` is float32 [ceil(N/128), ceil(K/128)] and
multiplies: despite its name it is what brings a value back. Edge blocks are simply smaller.

N rows · K columns · r, c blocks of rows and columns
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = (128, 128)
SCALE_SUFFIX = "_scale_inv"
LARGEST = 448.0  # of e4m3fn, which has no infinity


def scale_shape(shape: tuple[int, int], block: tuple[int, int] = BLOCK) -> tuple[int, int]:
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def dequantise(weight_NK: Tensor, scale_rc: Tensor, block: tuple[int, int] = BLOCK) -> Tensor:
    """float32 [N, K]. weight_NK: float8_e4m3fn, its first row the first of a block."""
    out_NK = weight_NK.float()
    columns_rK = scale_rc.float().repeat_interleave(block[1], dim=1)[:, : out_NK.shape[1]]
    for rows_bK, scale_K in zip(out_NK.split(block[0]), columns_rK, strict=True):
        rows_bK *= scale_K
    return out_NK


def quantise(weight_NK: Tensor, block: tuple[int, int] = BLOCK) -> tuple[Tensor, Tensor]:
    """(float8_e4m3fn [N, K], float32 scales [r, c]): each block's largest value becomes 448."""
    rows, columns = weight_NK.shape
    blocks_r, blocks_c = scale_shape((rows, columns), block)
    padding = (0, blocks_c * block[1] - columns, 0, blocks_r * block[0] - rows)
    tiles_rbck = F.pad(weight_NK.float(), padding).reshape(blocks_r, block[0], blocks_c, block[1])
    largest_rc = tiles_rbck.abs().amax(dim=(1, 3))
    scale_rc = torch.where(largest_rc > 0, largest_rc / LARGEST, 1.0)
    scaled = (tiles_rbck / scale_rc[:, None, :, None]).clamp(-LARGEST, LARGEST)
    values_NK = scaled.reshape(blocks_r * block[0], -1)[:rows, :columns]
    return values_NK.contiguous().to(torch.float8_e4m3fn), scale_rc
