"""What every kernel must compute, in plain torch: the oracle of the native code and its fallback.

Runs on any device, so it is also what a GPU uses for attention over the paged cache.
`T new tokens (packed) · B sequences · M blocks of a sequence · N blocks · S slots of a block ·
H query heads · G key heads · d, e head width · c latent width`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import scaled_dot_product_attention

from mull.kernels import int8_cache

GROUP = 32  # inputs that share a scale


def write_cache(cache_NS: Tensor, values_T: Tensor, slots_T: Tensor) -> None:
    """Store row t of `values_T` at slot `slots_T[t]` = block * S + offset, in the cache's dtype.

    cache_NS: [N, S, ...] contiguous; values_T: [T, ...] with the same trailing shape.
    """
    flat = cache_NS.view(-1, *cache_NS.shape[2:])
    flat.index_copy_(0, slots_T.long(), values_T.to(flat.dtype))


def paged_attention(
    q_THd: Tensor,
    key_NSGd: Tensor,
    value_NSGe: Tensor,
    block_table_BM: Tensor,
    query_starts_B1: Tensor,
    context_B: Tensor,
    scale: float,
) -> Tensor:
    """Grouped-query attention of new tokens over each sequence's cached blocks -> [T, H, e].

    Row i of the n new rows of sequence b sees the first context_b - n + i + 1 keys; the new
    tokens' own keys must have been written. Softmax in float32; result in the dtype of q.
    """
    if key_NSGd.dtype == torch.int8:
        return _attention_over_int8(
            q_THd, key_NSGd, value_NSGe, block_table_BM, query_starts_B1, context_B, scale
        )
    out = q_THd.new_zeros(*q_THd.shape[:2], value_NSGe.shape[-1])
    dtype = torch.promote_types(q_THd.dtype, torch.float32)
    for first, last, blocks, context in _sequences(
        block_table_BM, query_starts_B1, context_B, key_NSGd.shape[1]
    ):
        q_Hnd = q_THd[first:last].to(dtype).transpose(0, 1)
        k_GCd = key_NSGd[blocks].flatten(0, 1)[:context].to(dtype).transpose(0, 1)
        v_GCe = value_NSGe[blocks].flatten(0, 1)[:context].to(dtype).transpose(0, 1)
        attended = scaled_dot_product_attention(
            q_Hnd[None],
            k_GCd[None],
            v_GCe[None],
            attn_mask=_causal(last - first, context, q_THd.device),
            scale=scale,
            enable_gqa=True,
        )
        out[first:last] = attended[0].transpose(0, 1).to(out.dtype)
    return out


def _attention_over_int8(
    q_THd: Tensor,
    key_NSGb: Tensor,
    value_NSGb: Tensor,
    block_table_BM: Tensor,
    query_starts_B1: Tensor,
    context_B: Tensor,
    scale: float,
) -> Tensor:
    value_dim = value_NSGb.shape[-1] - int8_cache.row_bytes(0)
    out_THe = q_THd.new_zeros(*q_THd.shape[:2], value_dim)
    for first, last, blocks, context in _sequences(
        block_table_BM, query_starts_B1, context_B, key_NSGb.shape[1]
    ):
        keys, scales = int8_cache.keys(key_NSGb[blocks])
        values, value_scales = int8_cache.values(value_NSGb[blocks])
        out_THe[first:last] = int8_cache.attend(
            q_THd[first:last],
            (keys.flatten(0, 1)[:context], scales.flatten(0, 1)[:context]),
            (values.flatten(0, 1)[:context], value_scales.flatten(0, 1)[:context]),
            scale,
        ).to(out_THe.dtype)
    return out_THe


def paged_latent_attention(
    q_THc: Tensor,
    latent_NSc: Tensor,
    block_table_BM: Tensor,
    query_starts_B1: Tensor,
    context_B: Tensor,
    scale: float,
    value_dim: int,
) -> Tensor:
    """Absorbed MLA: every head attends to the one cached latent -> [T, H, value_dim].

    Keys are the whole latent row (compressed values, then the shared roped key); values are its
    first `value_dim` columns. Same causal rule as `paged_attention`.
    """
    heads, width = q_THc.shape[1:]
    out = q_THc.new_zeros(q_THc.shape[0], heads, value_dim)
    if latent_NSc.dtype == torch.int8:
        for first, last, blocks, context in _sequences(
            block_table_BM, query_starts_B1, context_B, latent_NSc.shape[1]
        ):
            latents, scales = int8_cache.latents(latent_NSc[blocks], width, value_dim)
            latents, scales = latents.flatten(0, 1)[:context], scales.flatten(0, 1)[:context]
            q_nHc = q_THc[first:last]
            attended = int8_cache.attend_latents(q_nHc, latents, scales, scale, value_dim)
            out[first:last] = attended.to(out.dtype)
        return out
    dtype = torch.promote_types(q_THc.dtype, torch.float32)
    for first, last, blocks, context in _sequences(
        block_table_BM, query_starts_B1, context_B, latent_NSc.shape[1]
    ):
        latent_Cc = latent_NSc[blocks].flatten(0, 1)[:context].to(dtype)
        scores = (q_THc[first:last].to(dtype).flatten(0, 1) @ latent_Cc.T) * scale
        scores_nHC = scores.view(last - first, heads, context)
        visible_nC = _causal(last - first, context, q_THc.device)
        if visible_nC is not None:
            scores_nHC.masked_fill_(~visible_nC[:, None], float("-inf"))
        weights = scores_nHC.softmax(-1).view(-1, context)
        attended = weights @ latent_Cc[:, :value_dim]
        out[first:last] = attended.view(last - first, heads, value_dim).to(out.dtype)
    return out


def linear(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x @ weight.T in float32; with bf16 weights the activations are rounded to bf16 first.

    So a bf16 product means the same on every processor: bf16 operands, float32 sums.
    """
    if weight_NK.dtype == torch.bfloat16:
        x_MK = x_MK.to(torch.bfloat16)
    y_MN = torch_linear(x_MK.float(), weight_NK.float())
    return y_MN if bias_N is None else y_MN + bias_N.float()


def quantised_activations(x_MK: Tensor) -> Tensor:
    """What a q8 or q4 product makes of its activations: whole numbers from -127 to 127 times a
    scale (largest magnitude / 127, in 16 bits) per group of 32 inputs, as float32."""
    x_MGg = _groups(x_MK.float())
    top_MG1 = x_MGg.abs().amax(-1, keepdim=True)
    # A number divided by a tensor is its reciprocal times the number in torch: another rounding.
    inverse_MG1 = torch.where(top_MG1 > 0, torch.full_like(top_MG1, 127.0) / top_MG1, 0.0)
    steps_MGg = (x_MGg * inverse_MG1).round()
    scale_MG1 = _shortened(top_MG1 * (1.0 / 127.0))
    return (steps_MGg * scale_MG1).flatten(-2)[..., : x_MK.shape[-1]]


def _shortened(x: Tensor) -> Tensor:
    """float32 rounded to 16 bits of mantissa: see native/quantised.h."""
    bits = (x.contiguous().view(torch.int32) + 0x80) & ~0xFF
    return torch.where(x.isfinite(), bits.view(torch.float32), x)


def quantised_weights(weight_NK: Tensor, kind: str) -> Tensor:
    """The nearest weights of kind "q8" or "q4" over each group's whole range, as float32.

    The native packing may choose a narrower range for q4 where the squared error is less.
    """
    w_NGg = _groups(weight_NK.float())
    least, most = w_NGg.amin(-1, keepdim=True), w_NGg.amax(-1, keepdim=True)
    if kind == "q8":
        scale, start, lowest, highest = (
            torch.maximum(-least / 128, most / 127),
            0 * least,
            -128,
            127,
        )
    else:
        scale, start, lowest, highest = (most - least) / 15, least.half().float(), 0, 15
    scale = scale.half().float()
    steps_NGg = torch.where(scale > 0, (w_NGg - start) / scale, 0.0).round()
    w_NGg = steps_NGg.clamp(lowest, highest) * scale + start
    return w_NGg.flatten(-2)[..., : weight_NK.shape[-1]]


def _groups(x_MK: Tensor) -> Tensor:
    """[..., K] -> [..., K / 32, 32], filled up with zeros."""
    padding = -x_MK.shape[-1] % GROUP
    return torch.nn.functional.pad(x_MK, (0, padding)).unflatten(-1, (-1, GROUP))


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, in float32."""
    x_TD = x_TD.float()
    return x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + eps) * weight_D.float()


def _sequences(
    block_table_BM: Tensor, query_starts_B1: Tensor, context_B: Tensor, block_size: int
) -> Iterator[tuple[int, int, Tensor, int]]:
    starts = query_starts_B1.tolist()
    for b, context in enumerate(context_B.tolist()):
        if starts[b + 1] > starts[b]:
            blocks = block_table_BM[b, : -(-context // block_size)].long()
            yield starts[b], starts[b + 1], blocks, context


def _causal(rows: int, context: int, device: torch.device) -> Tensor | None:
    if rows == 1:
        return None
    visible = torch.ones(rows, context, dtype=torch.bool, device=device)
    return visible.tril_(context - rows)
