"""Attention over the paged cache: native code where it exists, the torch reference elsewhere.

`T new tokens (packed) · B sequences · M blocks of a sequence · N blocks · S slots of a block ·
H query heads · G key heads · d, e head width · c latent width`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from mull.errors import KernelError
from mull.kernels import int8_cache, library, reference


def write_cache(cache_NS: Tensor, values_T: Tensor, slots_T: Tensor) -> None:
    """Store row t of `values_T` at slot `slots_T[t]` = block * S + offset, in the cache's dtype."""
    lib = _native_for(cache_NS)
    if lib is None:
        reference.write_cache(cache_NS, values_T, slots_T)
        return
    if cache_NS.shape[2:] != values_T.shape[1:]:
        raise KernelError(
            f"rows of shape {list(values_T.shape)} do not fit a cache of {list(cache_NS.shape)}"
        )
    _check_slots(values_T, slots_T)
    values_T = _float32(values_T)
    slots_T = _int32(slots_T)
    slots = cache_NS.shape[0] * cache_NS.shape[1]
    library.check(
        lib.mull_write_cache(
            cache_NS.data_ptr(),
            library.CACHE_KINDS[cache_NS.dtype],
            slots,
            cache_NS.numel() // max(slots, 1),
            values_T.data_ptr(),
            slots_T.data_ptr(),
            len(slots_T),
        )
    )


def write_keys(cache_NSG: Tensor, keys_TGd: Tensor, slots_T: Tensor) -> None:
    """Store keys of new tokens in a cache of any dtype, int8 included; see write_cache."""
    if cache_NSG.dtype != torch.int8:
        write_cache(cache_NSG, keys_TGd, slots_T)
    elif not _write_int8(cache_NSG, keys_TGd, slots_T, library.KEYS):
        int8_cache.write_keys(cache_NSG, keys_TGd, slots_T)


def write_values(cache_NSG: Tensor, values_TGe: Tensor, slots_T: Tensor) -> None:
    if cache_NSG.dtype != torch.int8:
        write_cache(cache_NSG, values_TGe, slots_T)
    elif not _write_int8(cache_NSG, values_TGe, slots_T, library.VALUES):
        int8_cache.write_values(cache_NSG, values_TGe, slots_T)


def write_latents(cache_NS: Tensor, latents_Tc: Tensor, slots_T: Tensor, value_dim: int) -> None:
    """Store MLA latents, whose first `value_dim` numbers are the value, in a cache of any dtype."""
    if cache_NS.dtype != torch.int8:
        write_cache(cache_NS, latents_Tc, slots_T)
        return
    int8_cache.check_latents(cache_NS, latents_Tc.shape[1], value_dim)
    rows_T1c = latents_Tc[:, None]
    if not _write_int8(cache_NS[:, :, None], rows_T1c, slots_T, library.LATENTS, value_dim):
        int8_cache.write_latents(cache_NS, latents_Tc, slots_T, value_dim)


def _write_int8(
    cache_NSGb: Tensor, rows_TGd: Tensor, slots_T: Tensor, role: int, value_dim: int = 0
) -> bool:
    heads, width = rows_TGd.shape[1:]
    if role != library.LATENTS:
        int8_cache.check_cache(cache_NSGb, heads, width)
    _check_slots(rows_TGd, slots_T)
    lib = _native_for(cache_NSGb)
    if lib is None:
        return False
    rows_TGd, slots_T = _float32(rows_TGd), _int32(slots_T)
    rows = library.CacheRows(
        cache=cache_NSGb.data_ptr(),
        rows=rows_TGd.data_ptr(),
        slots=slots_T.data_ptr(),
        count=len(slots_T),
        num_slots=cache_NSGb.shape[0] * cache_NSGb.shape[1],
        block_size=cache_NSGb.shape[1],
        heads=heads,
        width=width,
        value_width=value_dim,
        role=role,
    )
    library.check(lib.mull_write_int8(ctypes.byref(rows), library.threads()))
    return True


def paged_attention(
    q_THd: Tensor,
    key_NSGd: Tensor,
    value_NSGe: Tensor,
    block_table_BM: Tensor,
    query_starts_B1: Tensor,
    context_B: Tensor,
    scale: float,
) -> Tensor:
    """Grouped-query attention of new tokens over cached blocks -> [T, H, e], causal.

    block_table_BM, query_starts_B1 (length B+1), context_B (including the new tokens): int32.
    Caches of any dtype; an int8 one has rows of int8_cache.row_bytes(width).
    """
    extra = 0
    if key_NSGd.dtype == torch.int8:
        extra = int8_cache.row_bytes(0)
        int8_cache.check_cache(key_NSGd, value_NSGe.shape[2], q_THd.shape[2])
    lib = _native_for(key_NSGd, value_NSGe)
    if lib is None:
        return reference.paged_attention(
            q_THd, key_NSGd, value_NSGe, block_table_BM, query_starts_B1, context_B, scale
        )
    tokens, heads, key_dim = q_THd.shape
    kv_heads, value_dim = value_NSGe.shape[2], value_NSGe.shape[3] - extra
    if key_NSGd.shape[2:] != (kv_heads, key_dim + extra) or heads % kv_heads:
        raise KernelError(
            f"queries {list(q_THd.shape)} do not fit keys {list(key_NSGd.shape)} "
            f"and values {list(value_NSGe.shape)}"
        )
    dtype = q_THd.dtype
    q_THd, tables = _float32(q_THd), _tables(block_table_BM, query_starts_B1, context_B)
    out_THe = torch.empty(tokens, heads, value_dim, dtype=torch.float32)
    attention = library.Attention(
        q=q_THd.data_ptr(),
        key=key_NSGd.data_ptr(),
        value=value_NSGe.data_ptr(),
        out=out_THe.data_ptr(),
        paging=paging(*tables, cache_NS=key_NSGd),
        rows=tokens,
        q_stride=heads * key_dim,
        out_stride=heads * value_dim,
        heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        key_token_stride=kv_heads * key_dim,
        key_head_stride=key_dim,
        value_token_stride=kv_heads * value_dim,
        value_head_stride=value_dim,
        scale=scale,
        cache_kind=library.CACHE_KINDS[key_NSGd.dtype],
    )
    library.check(lib.mull_attention(ctypes.byref(attention), library.threads()))
    return out_THe.to(dtype)


def paged_latent_attention(
    q_THc: Tensor,
    latent_NSc: Tensor,
    block_table_BM: Tensor,
    query_starts_B1: Tensor,
    context_B: Tensor,
    scale: float,
    value_dim: int,
) -> Tensor:
    """Multi-query attention over the cached MLA latent -> [T, H, value_dim], causal."""
    extra = 0
    if latent_NSc.dtype == torch.int8:
        int8_cache.check_latents(latent_NSc, q_THc.shape[2], value_dim)
        extra = latent_NSc.shape[2] - q_THc.shape[2]
    lib = _native_for(latent_NSc)
    if lib is None:
        return reference.paged_latent_attention(
            q_THc, latent_NSc, block_table_BM, query_starts_B1, context_B, scale, value_dim
        )
    tokens, heads, width = q_THc.shape
    if latent_NSc.shape[2] != width + extra or value_dim > width:
        raise KernelError(
            f"queries {list(q_THc.shape)} with values of {value_dim} do not fit "
            f"latents {list(latent_NSc.shape)}"
        )
    dtype = q_THc.dtype
    q_THc, tables = _float32(q_THc), _tables(block_table_BM, query_starts_B1, context_B)
    out_THv = torch.empty(tokens, heads, value_dim, dtype=torch.float32)
    attention = library.Attention(
        q=q_THc.data_ptr(),
        key=latent_NSc.data_ptr(),
        value=latent_NSc.data_ptr(),
        out=out_THv.data_ptr(),
        paging=paging(*tables, cache_NS=latent_NSc),
        rows=tokens,
        q_stride=heads * width,
        out_stride=heads * value_dim,
        heads=heads,
        kv_heads=1,
        key_dim=width,
        value_dim=value_dim,
        key_token_stride=width,
        value_token_stride=width,
        scale=scale,
        cache_kind=library.CACHE_KINDS[latent_NSc.dtype],
        is_latent=1,
    )
    library.check(lib.mull_attention(ctypes.byref(attention), library.threads()))
    return out_THv.to(dtype)


def paging(
    block_table_BM: Tensor, query_starts_B1: Tensor, context_B: Tensor, *, cache_NS: Tensor
) -> library.Paging:
    """The tables as native code reads them: int32, contiguous, alive as long as they are used."""
    sequences, blocks = block_table_BM.shape
    if not sequences == len(query_starts_B1) - 1 == len(context_B):
        raise KernelError(
            f"{len(context_B)} contexts do not fit a block table of {sequences} sequences and "
            f"{len(query_starts_B1)} query starts: there must be one start more"
        )
    return library.Paging(
        block_table=block_table_BM.data_ptr(),
        query_starts=query_starts_B1.data_ptr(),
        context=context_B.data_ptr(),
        sequences=sequences,
        blocks_per_sequence=blocks,
        num_blocks=cache_NS.shape[0],
        block_size=cache_NS.shape[1],
    )


def _check_slots(rows_T: Tensor, slots_T: Tensor) -> None:
    if len(rows_T) != len(slots_T):
        raise KernelError(f"{len(rows_T)} rows cannot be written to {len(slots_T)} slots")


def _native_for(*caches: Tensor) -> ctypes.CDLL | None:
    lib = library.library()
    if lib is None or not all(cache.dtype in library.CACHE_KINDS for cache in caches):
        return None
    usable = all(cache.device.type == "cpu" and cache.is_contiguous() for cache in caches)
    return lib if usable else None


def _tables(table: Tensor, starts: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _int32(table), _int32(starts), _int32(context)


def _int32(x: Tensor) -> Tensor:
    return x.to(torch.int32).contiguous()


def _float32(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32).contiguous()
