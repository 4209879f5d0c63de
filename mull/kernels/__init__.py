"""Linear layers and cached attention for the CPU: native code, and torch where there is none."""

from mull.kernels.attention import paged_attention, paged_latent_attention, write_cache
from mull.kernels.library import describe, native_available, release_threads
from mull.kernels.linear import PackedLinear

__all__ = [
    "PackedLinear",
    "describe",
    "native_available",
    "paged_attention",
    "paged_latent_attention",
    "release_threads",
    "write_cache",
]
