"""What this machine can do at best, measured now: the yardstick for every speed mull prints.

Cores change state from minute to minute on shared machines, so a peak is never stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass

import psutil
import torch

from mull.kernels import library
from mull.kernels.pages import zeros_in_huge_pages


@dataclass(frozen=True)
class Peaks:
    """read_gb_per_s: reading memory far beyond the caches. fp32, bf16: matrix products of torch.
    int8: the better of torch's and the native kernels' fastest products, from registers."""

    read_gb_per_s: float
    fp32_gflop_per_s: float
    bf16_gflop_per_s: float
    int8_gop_per_s: float
    threads: int

    def best_of(self, other: Peaks) -> Peaks:
        """The better of two readings of the same machine: neighbours can only slow it down."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Peaks(*(max(pair) for pair in pairs))

    def of_products(self, precision: str) -> tuple[str, float]:
        """(name, 10^9 operations a second): what products with weights in this precision can reach.
        bf16 is widened to float32 where that is faster."""
        if precision in ("q8", "q4"):
            return "int8", self.int8_gop_per_s
        if precision == "bf16" and self.bf16_gflop_per_s > self.fp32_gflop_per_s:
            return "bf16", self.bf16_gflop_per_s
        return "fp32", self.fp32_gflop_per_s

    def in_words(self) -> str:
        return (
            f"{self.read_gb_per_s:.1f} GB/s read, {self.fp32_gflop_per_s:,.0f} GFLOP/s fp32, "
            f"{self.bf16_gflop_per_s:,.0f} GFLOP/s bf16, {self.int8_gop_per_s:,.0f} GOP/s int8 "
            f"({self.threads} threads)"
        )


# 10^9 operations a second that no processor with an instruction for bytes stays below.
_NO_INT8 = 20.0
_NATIVE_OPERATIONS = 1_000_000_000


def measure_peaks(rounds: int = 5) -> Peaks:
    """Best of `rounds` for each; takes about a second and at most 512 MB."""
    with torch.inference_mode():
        return Peaks(
            read_gb_per_s=round(read_bandwidth(rounds), 1),
            fp32_gflop_per_s=round(matmul_gflop_per_s(torch.float32, rounds), 1),
            bf16_gflop_per_s=round(matmul_gflop_per_s(torch.bfloat16, rounds), 1),
            int8_gop_per_s=round(_int8_rate(rounds), 1),
            threads=torch.get_num_threads(),
        )


def read_bandwidth(rounds: int = 5) -> float:
    """GB/s of a dot product of two vectors, and of a matrix with a vector; the better one."""
    # Far larger than any last-level cache share, but never a burden on a small machine.
    size = min(512 * 2**20, psutil.virtual_memory().available // 8)
    # In huge pages, as the weights lie: in small ones the processor waits for page tables too.
    rows = zeros_in_huge_pages((size // 4 // 8192 * 2, 4096), torch.float32).fill_(1.0)
    vector = torch.ones(4096)
    first, second = rows.view(2, -1)
    seconds = min(
        _best_seconds(lambda: torch.dot(first, second), rounds),
        _best_seconds(lambda: torch.mv(rows, vector), rounds),
    )
    return rows.numel() * rows.element_size() / seconds / 1e9


def matmul_gflop_per_s(dtype: torch.dtype, rounds: int = 5, n: int = 1024) -> float:
    """Of torch's own product of two square matrices."""
    a, b = torch.ones(n, n, dtype=dtype), torch.ones(n, n, dtype=dtype)
    return 2 * n**3 / _best_seconds(lambda: torch.nn.functional.linear(a, b), rounds) / 1e9


def _int8_rate(rounds: int) -> float:
    native = library.library()
    of_torch = _int8_rate_of_torch(rounds)
    if native is None:
        return of_torch
    threads = library.threads()
    seconds = _best_seconds(
        lambda: native.mull_multiply_whole_numbers(_NATIVE_OPERATIONS, threads), rounds
    )
    return max(of_torch, threads * _NATIVE_OPERATIONS / seconds / 1e9)


def _int8_rate_of_torch(rounds: int, n: int = 256) -> float:
    a, b = torch.ones(n, n, dtype=torch.int8), torch.ones(n, n, dtype=torch.int8)
    rate = 2 * n**3 / _best_seconds(lambda: torch._int_mm(a, b), rounds) / 1e9
    # Without an instruction for it a small product has shown all, and a large one takes seconds.
    if rate < _NO_INT8 or n >= 1024:
        return rate
    return max(rate, _int8_rate_of_torch(rounds, 1024))


def _best_seconds(run: Callable[[], object], rounds: int) -> float:
    run()
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
