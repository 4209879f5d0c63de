"""Draws with torch's operations, for devices and builds without the native code.

Full sorts are avoided: the best few candidates decide nearly every row, the rest fall back to the
whole row.

B rows · V vocabulary · K candidates · N blocks of a row · S entries of a block
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from mull.engine.request import SamplingParams
from mull.errors import ModelError

# Candidates looked at first; a row whose filters reach further is sorted.
FEW = 64
BLOCK = 128


def greedy(logits_BV: Tensor) -> list[int]:
    """Id of each row's largest logit, the lowest id of equal ones."""
    if logits_BV.device.type == "cpu":
        # torch's argmax over long rows uses no vector instructions, numpy's does.
        rows_BV = logits_BV.numpy()
        ids: list[int] = rows_BV.argmax(axis=1).tolist()
        best = [float(rows_BV[row, token]) for row, token in enumerate(ids)]
    else:
        best_B, ids_B = logits_BV.max(-1)
        best, ids = best_B.tolist(), ids_B.tolist()
    _refuse_damage(best)
    return ids


def _refuse_damage(best: list[float]) -> None:
    """The rows' largest logits: a NaN anywhere in a row shows in them."""
    if not all(map(isfinite, best)):
        raise damage()


def damage() -> ModelError:
    return ModelError(
        "the model computed a logit that is no finite number: its weights are damaged "
        "(mull pull NAME checks and mends them), or its numbers need --precision fp32"
    )


def draw(logits_BV: Tensor, params: Rows[SamplingParams], noise: Rows[float]) -> list[int]:
    """One token a row by temperature, top_k, top_p and min_p; noise: a number in [0, 1) each."""
    device = logits_BV.device
    noise_B = torch.tensor(noise, dtype=torch.float64, device=device)
    inverse_B1 = torch.tensor([[1.0 / p.temperature] for p in params], device=device)
    weights_BV, sums_BN = _weights(logits_BV, inverse_B1)
    filtered = [i for i, p in enumerate(params) if p.has_filters]
    if not filtered:
        return _draw_whole(weights_BV, sums_BN, noise_B).tolist()
    if len(filtered) == len(params):
        return _draw_filtered(weights_BV, sums_BN, noise_B, params)
    tokens = [0] * len(params)
    whole = [i for i, p in enumerate(params) if not p.has_filters]
    for i, token in zip(
        whole, _draw_whole(weights_BV[whole], sums_BN[whole], noise_B[whole]).tolist(), strict=True
    ):
        tokens[i] = token
    some = _draw_filtered(
        weights_BV[filtered], sums_BN[filtered], noise_B[filtered], [params[i] for i in filtered]
    )
    for i, token in zip(filtered, some, strict=True):
        tokens[i] = token
    return tokens


def _weights(logits_BV: Tensor, inverse_temperature_B1: Tensor) -> tuple[Tensor, Tensor]:
    """exp((logits - best) / temperature), zero-padded to whole blocks, and the sums of the blocks.

    The best token weighs 1, so min_p compares with these weights directly.
    """
    batch, vocabulary = logits_BV.shape
    best_B1 = logits_BV.amax(-1, keepdim=True)
    _refuse_damage(best_B1.flatten().tolist())
    padded = -(-vocabulary // BLOCK) * BLOCK
    weights_BV = logits_BV.new_zeros(batch, padded)
    live = weights_BV[:, :vocabulary]
    torch.sub(logits_BV, best_B1, out=live)
    live.mul_(inverse_temperature_B1).exp_()
    # Sums over fixed blocks: the same order of addition whatever the batch.
    return weights_BV, weights_BV.view(batch, -1, BLOCK).sum(-1).double()


def _draw_whole(weights_BV: Tensor, sums_BN: Tensor, noise_B: Tensor) -> Tensor:
    """Inverse cumulative distribution in vocabulary order: first the block, then in it."""
    batch = len(weights_BV)
    ends_BN = sums_BN.cumsum(-1)
    target_B1 = (noise_B * ends_BN[:, -1])[:, None]
    block_B1 = torch.searchsorted(ends_BN, target_B1, right=True).clamp_(max=ends_BN.shape[1] - 1)
    start_B1 = (ends_BN - sums_BN).gather(1, block_B1)
    rows_B = torch.arange(batch, device=weights_BV.device)
    inside_BS = weights_BV.view(batch, -1, BLOCK)[rows_B, block_B1[:, 0]]
    return block_B1[:, 0] * BLOCK + _pick(inside_BS, target_B1 - start_B1)


def _pick(weights_BK: Tensor, target_B1: Tensor) -> Tensor:
    """First entry whose cumulative weight passes the target; never one of weight zero."""
    ends_BK = weights_BK.double().cumsum(-1)
    picked_B = (ends_BK <= target_B1).sum(-1)
    places_K = torch.arange(weights_BK.shape[1], device=weights_BK.device)
    last_B = (places_K * (weights_BK > 0)).amax(-1)
    return torch.minimum(picked_B, last_B)


def _draw_filtered(
    weights_BV: Tensor, sums_BN: Tensor, noise_B: Tensor, params: Rows[SamplingParams]
) -> list[int]:
    """The best few decide nearly every row; the others have their whole row sorted."""
    vocabulary = weights_BV.shape[1]
    # A top_k of the whole vocabulary or more filters nothing.
    filters = [(p.top_k if p.top_k < vocabulary else 0, p.top_p, p.min_p) for p in params]
    filters_B3 = torch.tensor(filters, dtype=torch.float64, device=weights_BV.device)
    total_B1 = sums_BN.sum(-1, keepdim=True)
    best_BK, ids_BK = _best(weights_BV, min(FEW, vocabulary))
    keep_BK, is_covered_B = _kept(best_BK, total_B1, filters_B3)
    picked_B = _draw_kept(best_BK * keep_BK, ids_BK, noise_B)
    tokens: list[int] = torch.where(is_covered_B, picked_B, -1).tolist()
    rest = [i for i, token in enumerate(tokens) if token < 0]
    if rest:
        weights_RV = weights_BV[rest]
        sorted_RV = _sorted(weights_RV)
        keep_RV, _ = _kept(sorted_RV, total_B1[rest], filters_B3[rest])
        least_R1 = torch.where(keep_RV, sorted_RV, torch.inf).amin(-1, keepdim=True)
        kept_RV = weights_RV.masked_fill_(weights_RV < least_R1, 0.0)
        sums_RN = kept_RV.view(len(rest), -1, BLOCK).sum(-1).double()
        drawn = _draw_whole(kept_RV, sums_RN, noise_B[rest]).tolist()
        for i, token in zip(rest, drawn, strict=True):
            tokens[i] = token
    return tokens


def _kept(best_BK: Tensor, total_B1: Tensor, filters_B3: Tensor) -> tuple[Tensor, Tensor]:
    """Which of a row's best weights (in falling order) its filters keep, and for which rows no
    weight beyond these could be kept.

    filters_B3: top_k (0 is off), top_p, min_p. total_B1: the weight of the whole row.
    """
    top_k_B1, top_p_B1, min_p_B1 = filters_B3.split(1, dim=-1)
    size = best_BK.shape[1]
    places_K = torch.arange(size, device=best_BK.device)
    ends_BK = best_BK.cumsum(-1, dtype=torch.float64)
    has_top_k_B1 = top_k_B1 > 0
    # top_p counts within what top_k leaves.
    last_B1 = (top_k_B1.long() - 1).clamp_(min=0, max=size - 1)
    total_B1 = torch.where(has_top_k_B1, ends_BK.gather(1, last_B1), total_B1)
    mass_B1 = torch.where(top_p_B1 < 1, top_p_B1 * total_B1, torch.inf)
    keep_BK = (ends_BK - best_BK < mass_B1) & (best_BK >= min_p_B1)
    keep_BK &= (places_K < top_k_B1) | ~has_top_k_B1
    keep_BK[:, 0] = True
    is_covered_B1 = torch.where(
        has_top_k_B1, top_k_B1 <= size, ends_BK[:, -1:] >= mass_B1
    ) | ~has_top_k_B1 & (best_BK[:, -1:] < min_p_B1)
    return keep_BK, is_covered_B1[:, 0]


def _draw_kept(kept_BK: Tensor, ids_BK: Tensor, noise_B: Tensor) -> Tensor:
    target_B1 = noise_B[:, None] * kept_BK.sum(-1, keepdim=True, dtype=torch.float64)
    return ids_BK.gather(1, _pick(kept_BK, target_B1)[:, None])[:, 0]


def _sorted(weights_BV: Tensor) -> Tensor:
    """The weights of each row in falling order."""
    if weights_BV.device.type == "cpu":
        # numpy sorts plain floats with vector instructions, over ten times faster than torch.
        return torch.from_numpy(-np.sort(-weights_BV.numpy(), axis=-1))
    return weights_BV.sort(dim=-1, descending=True).values


def _best(weights_BV: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` largest weights of each row in falling order, and their ids."""
    blocks_BNS = weights_BV.view(len(weights_BV), -1, BLOCK // 2)
    if blocks_BNS.shape[1] <= size:
        return weights_BV.topk(size)
    # The best K entries lie within the K blocks whose maxima are largest.
    block_BK = blocks_BNS.amax(-1).topk(size, sorted=False).indices
    width = BLOCK // 2
    near_BKS = blocks_BNS.gather(1, block_BK[:, :, None].expand(-1, -1, width))
    best_BK, place_BK = near_BKS.flatten(1).topk(size)
    return best_BK, block_BK.gather(1, place_BK // width) * width + place_BK % width
