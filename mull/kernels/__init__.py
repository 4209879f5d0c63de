"""Linear layers, attention and the draw: native code on the CPU, torch where there is none."""

from mull.kernels.attention import (
    paged_attention,
    paged_latent_attention,
    write_cache,
    write_keys,
    write_latents,
    write_values,
)
from mull.kernels.draw import Filters, can_draw, draw
from mull.kernels.int8_cache import check_latent_shape as check_int8_latent_shape
from mull.kernels.int8_cache import check_shape as check_int8_shape
from mull.kernels.int8_cache import latent_row_bytes as int8_latent_row_bytes
from mull.kernels.int8_cache import row_bytes as int8_row_bytes
from mull.kernels.library import describe, native_available, release_threads
from mull.kernels.linear import PackedLinear

__all__ = [
    "Filters",
    "PackedLinear",
    "can_draw",
    "check_int8_latent_shape",
    "check_int8_shape",
    "describe",
    "draw",
    "int8_latent_row_bytes",
    "int8_row_bytes",
    "native_available",
    "paged_attention",
    "paged_latent_attention",
    "release_threads",
    "write_cache",
    "write_keys",
    "write_latents",
    "write_values",
]
