"""The int8 cache in torch: its layout (see native/int8_cache.h) and attention over it.

Rows are symmetric int8, each with a float32 scale; what is exact in native code (dot products of
whole numbers) is exact here, softmax and sums differ in the last bits.
`T new tokens (packed) · N blocks · S slots of a block · P pages of a block and key head · H query
heads · G key heads · d, e head width · C keys of a sequence · X splits · Y chunks of a split`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mull.errors import KernelError

PAGE = 16  # tokens whose bytes lie interleaved; a block holds a multiple of it
SPLIT = 256  # keys that share one maximum
CHUNK = 64  # keys whose weights share one scale
WIDEST = 1024
_SCALE_BYTES = 4


def row_bytes(width: int) -> int:
    """What a key or a value of one token and key head takes."""
    return width + _SCALE_BYTES


def check_shape(width: int, block_size: int) -> None:
    if width % 4 or width > WIDEST:
        raise KernelError(
            f"heads of an int8 cache have a width that is a multiple of 4 up to {WIDEST}, "
            f"not {width}: use a bf16 cache"
        )
    _check_block_size(block_size)


def _check_block_size(block_size: int) -> None:
    if block_size % PAGE:
        raise KernelError(
            f"blocks of an int8 cache hold a multiple of {PAGE} tokens, not {block_size}"
        )


def check_cache(cache_NSGb: Tensor, heads: int, width: int) -> None:
    check_shape(width, cache_NSGb.shape[1])
    if cache_NSGb.shape[2:] != (heads, row_bytes(width)):
        raise KernelError(
            f"{heads} heads of {width} do not fit an int8 cache of {list(cache_NSGb.shape)}"
        )


def latent_row_bytes(width: int, value_dim: int) -> int:
    """What an MLA latent of one token takes: two parts, each with its scale and its sum."""
    return padded(value_dim) + padded(width - value_dim) + 4 * _SCALE_BYTES


def padded(width: int) -> int:
    return -(-width // PAGE) * PAGE


def check_latents(cache_NSb: Tensor, width: int, value_dim: int) -> None:
    check_latent_shape(width, cache_NSb.shape[1])
    if value_dim > width or cache_NSb.shape[2] != latent_row_bytes(width, value_dim):
        raise KernelError(
            f"latents of {width} with values of {value_dim} do not fit "
            f"an int8 cache of {list(cache_NSb.shape)}"
        )


def check_latent_shape(width: int, block_size: int) -> None:
    if width > WIDEST:
        raise KernelError(f"an int8 cache holds latents of up to {WIDEST}, not {width}")
    _check_block_size(block_size)


def mix(x_d: Tensor) -> Tensor:
    """Times a Hadamard matrix, not normalised, over runs as long as the largest power of two in d.

    Keys are stored like this and queries compared with them like this: no channel stands out.
    """
    n = x_d.shape[-1] & -x_d.shape[-1]
    y = x_d.float().reshape(-1, n)
    step = n
    while step > 1:
        y = torch.cat((y[:, 0::2] + y[:, 1::2], y[:, 0::2] - y[:, 1::2]), dim=-1)
        step //= 2
    return y.view(x_d.shape)


def quantise(x_d: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 (float32) and their scale per row."""
    scale = x_d.float().abs().amax(-1) * (1.0 / 127.0)
    inverse = torch.where(scale > 0, 1.0 / scale, 0.0)
    return (x_d * inverse[..., None]).round().nan_to_num(0.0).clamp(-128, 127), scale


def write_keys(cache_NSGb: Tensor, keys_TGd: Tensor, slots_T: Tensor) -> None:
    codes, scales = quantise(mix(keys_TGd))
    _write(_key_bytes(cache_NSGb), cache_NSGb, codes.unflatten(-1, (-1, 4)) + 128, scales, slots_T)


def write_values(cache_NSGb: Tensor, values_TGe: Tensor, slots_T: Tensor) -> None:
    codes, scales = quantise(values_TGe)
    bytes_NGPqet = _value_bytes(cache_NSGb)
    # Quads of tokens with the quad's four apart, as the index below wants them: one axis.
    bytes_NGPse = bytes_NGPqet.transpose(-1, -2)
    block, page, token = _places(cache_NSGb, slots_T)
    bytes_NGPse[block, :, page, token // 4, token % 4] = codes.to(torch.int8)
    _scales(cache_NSGb)[block, :, page, token] = scales


def keys(cache_NSGb: Tensor) -> tuple[Tensor, Tensor]:
    """The whole cache's mixed keys as whole numbers (float32), [N, S, G, d], and their scales."""
    codes_NGPdsi = _key_bytes(cache_NSGb).float() - 128
    codes_NPsGd = codes_NGPdsi.permute(0, 2, 4, 1, 3, 5).flatten(-2)
    return codes_NPsGd.flatten(1, 2), _scales(cache_NSGb).permute(0, 2, 3, 1).flatten(1, 2)


def values(cache_NSGb: Tensor) -> tuple[Tensor, Tensor]:
    codes_NPqtGe = _value_bytes(cache_NSGb).float().permute(0, 2, 3, 5, 1, 4)
    return codes_NPqtGe.flatten(1, 3), _scales(cache_NSGb).permute(0, 2, 3, 1).flatten(1, 2)


def attend(
    q_nHd: Tensor,
    keys_CGd: tuple[Tensor, Tensor],
    values_CGe: tuple[Tensor, Tensor],
    scale: float,
) -> Tensor:
    """The last n tokens of one sequence over all its C keys -> [n, H, e], causal."""
    rows, heads, width = q_nHd.shape
    (k_CGd, k_scale_CG), (v_CGe, v_scale_CG) = keys_CGd, values_CGe
    context, groups = k_CGd.shape[0], heads // k_CGd.shape[1]
    q_nHd, q_scale_nH = quantise(mix(q_nHd))
    k_CHd, v_CHe = (x.repeat_interleave(groups, 1) for x in (k_CGd, v_CGe))
    k_scale_CH, v_scale_CH = (x.repeat_interleave(groups, 1) for x in (k_scale_CG, v_scale_CG))
    q_scale_nH = q_scale_nH * (scale / (width & -width))
    scores_nHC = torch.einsum("nhd,chd->nhc", q_nHd, k_CHd)
    scores_nHC = scores_nHC * (k_scale_CH.T * q_scale_nH[..., None])
    visible_nC = torch.ones(rows, context, dtype=torch.bool, device=q_nHd.device)
    scores_nHC = scores_nHC.masked_fill(~visible_nC.tril_(context - rows)[:, None], -math.inf)
    return weigh(scores_nHC, v_CHe, v_scale_CH)


def weigh(scores_nHC: Tensor, v_CHe: Tensor, v_scale_CH: Tensor) -> Tensor:
    """Softmax over C and the weighed values -> [n, H, e]; scores of keys out of sight are -inf."""
    beyond = -scores_nHC.shape[-1] % SPLIT
    pad = torch.nn.functional.pad
    scores_nHXc = pad(scores_nHC, (0, beyond), value=-math.inf).unflatten(-1, (-1, SPLIT))
    v_XYcHe = pad(v_CHe, (0, 0, 0, 0, 0, beyond)).unflatten(0, (-1, SPLIT // CHUNK, CHUNK))
    v_scale_HXc = pad(v_scale_CH.T, (0, beyond)).unflatten(-1, (-1, SPLIT))
    top_nHX = scores_nHXc.amax(-1)
    weights = (scores_nHXc - top_nHX[..., None]).exp()
    seen = scores_nHXc != -math.inf
    weights = weights.where(seen, 0.0)
    weighed = (weights * v_scale_HXc).where(seen, 0.0).unflatten(-1, (-1, CHUNK))
    most = weighed.amax(-1, keepdim=True)
    bytes_nHXYc = (weighed * torch.where(most > 0, 255.0 / most, 0.0)).round()
    dots_nHXYe = torch.einsum("nhxyc,xyche->nhxye", bytes_nHXYc, v_XYcHe)
    parts_nHXe = (dots_nHXYe * (most / 255.0)).sum(-2)
    factor_nHX = (top_nHX - top_nHX.amax(-1, keepdim=True)).exp()
    total_nH = (weights.sum(-1) * factor_nHX).sum(-1)
    return (parts_nHXe * factor_nHX[..., None]).sum(-2) / total_nH[..., None]


def write_latents(cache_NSb: Tensor, latents_Tc: Tensor, slots_T: Tensor, value_dim: int) -> None:
    width = latents_Tc.shape[1]
    value, roped = latents_Tc.float().split((value_dim, width - value_dim), dim=-1)
    parts = [value, mix(roped) if width > value_dim else roped]
    block, page, token = _places(cache_NSb[:, :, None], slots_T)
    bytes_NPqgti, scales_NP2t, offsets_NP2t = _latent_parts(cache_NSb, width, value_dim)
    first = 0
    for part, x in enumerate(parts):
        codes, scales = quantise(x) if x.shape[1] else (x, x.new_zeros(len(x)))
        codes = torch.nn.functional.pad(codes, (0, -x.shape[1] % PAGE))
        last = first + codes.shape[1] // 4
        bytes_NPqgti[block, page, token // 4, first:last, token % 4] = codes.unflatten(
            -1, (-1, 4)
        ).to(torch.int8)
        scales_NP2t[block, page, part, token] = scales
        offsets_NP2t[block, page, part, token] = (-128 * codes.sum(-1)).to(torch.int32)
        first = last


def latents(cache_NSb: Tensor, width: int, value_dim: int) -> tuple[Tensor, Tensor]:
    """Whole numbers (float32) [N, S, c], the roped part mixed, and both parts' scales [N, S, 2]."""
    bytes_NPqgti, scales_NP2t, _ = _latent_parts(cache_NSb, width, value_dim)
    codes_NSb = bytes_NPqgti.float().transpose(-3, -2).flatten(-2).flatten(1, 3)
    value, roped = codes_NSb.split((padded(value_dim), padded(width - value_dim)), dim=-1)
    codes_NSc = torch.cat((value[..., :value_dim], roped[..., : width - value_dim]), dim=-1)
    return codes_NSc, scales_NP2t.transpose(-1, -2).flatten(1, 2)


def attend_latents(
    q_nHc: Tensor, latents_Cc: Tensor, scales_C2: Tensor, scale: float, value_dim: int
) -> Tensor:
    """The last n tokens of one sequence over all its C latents -> [n, H, value_dim], causal."""
    rows, _, width = q_nHc.shape
    roped, context = width - value_dim, latents_Cc.shape[0]
    parts = [(q_nHc[..., :value_dim].float(), 1)]
    if roped:
        parts.append((mix(q_nHc[..., value_dim:]), roped & -roped))
    scores_nHC = q_nHc.new_zeros(rows, q_nHc.shape[1], context, dtype=torch.float32)
    first = 0
    for part, (q_nHx, grown) in enumerate(parts):
        q_nHx, q_scale_nH = quantise(q_nHx)
        dots_nHC = q_nHx @ latents_Cc[:, first : first + q_nHx.shape[-1]].T
        scores_nHC += dots_nHC * (scales_C2[:, part] * (q_scale_nH * (scale / grown))[..., None])
        first += q_nHx.shape[-1]
    visible_nC = torch.ones(rows, context, dtype=torch.bool, device=q_nHc.device)
    scores_nHC.masked_fill_(~visible_nC.tril_(context - rows)[:, None], -math.inf)
    return weigh(scores_nHC, latents_Cc[:, None, :value_dim], scales_C2[:, :1])


def _latent_parts(cache_NSb: Tensor, width: int, value_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes [N, P, 4 quads of tokens, padded c / 4, 4 tokens, 4]; scales, offsets [N, P, 2, 16]."""
    pages_NPb = cache_NSb.view(len(cache_NSb), -1, PAGE * cache_NSb.shape[2])
    size = PAGE * (padded(value_dim) + padded(width - value_dim))
    tail = pages_NPb[..., size:].unflatten(-1, (4, -1))
    bytes_NPqgti = pages_NPb[..., :size].unflatten(-1, (4, -1, 4, 4))
    return bytes_NPqgti, tail[:, :, :2].view(torch.float32), tail[:, :, 2:].view(torch.int32)


def _write(
    bytes_NGPdsi: Tensor, cache_NSGb: Tensor, codes: Tensor, scales: Tensor, slots_T: Tensor
) -> None:
    block, page, token = _places(cache_NSGb, slots_T)
    bytes_NGPdsi[block, :, page, :, token] = codes.to(torch.uint8)
    _scales(cache_NSGb)[block, :, page, token] = scales


def _places(cache_NSGb: Tensor, slots_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Block, page in it and token in that, of every slot."""
    slots_T = slots_T.long()
    inside = slots_T % cache_NSGb.shape[1]
    return slots_T // cache_NSGb.shape[1], inside // PAGE, inside % PAGE


def _pages(cache_NSGb: Tensor) -> Tensor:
    blocks, size, heads, width = cache_NSGb.shape
    return cache_NSGb.view(blocks, heads, size // PAGE, PAGE * width)


def _key_bytes(cache_NSGb: Tensor) -> Tensor:
    """[N, G, P, d / 4, 16 tokens, 4], zero point 128."""
    data = _pages(cache_NSGb)[..., : -PAGE * _SCALE_BYTES]
    return data.view(torch.uint8).unflatten(-1, (-1, PAGE, 4))


def _value_bytes(cache_NSGb: Tensor) -> Tensor:
    """[N, G, P, 4 quads of tokens, e, 4 tokens]."""
    data = _pages(cache_NSGb)[..., : -PAGE * _SCALE_BYTES]
    return data.unflatten(-1, (PAGE // 4, -1, 4))


def _scales(cache_NSGb: Tensor) -> Tensor:
    """[N, G, P, 16 tokens]."""
    return _pages(cache_NSGb)[..., -PAGE * _SCALE_BYTES :].view(torch.float32)
