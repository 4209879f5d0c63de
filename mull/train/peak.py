"""What this machine's matrix products reach at best: the yardstick for utilisation."""

from __future__ import annotations

from typing import Literal

import torch

from mull.kernels import library
from mull.kernels.peaks import matmul_gflop_per_s


class Peak:
    """GFLOP/s by precision, measured when first asked for: about a tenth of a second each.

    Cores change their state from minute to minute on shared machines, so no peak outlives a run.
    stated: of another machine, at any precision; then nothing is measured.
    """

    def __init__(self, stated: float | None = None) -> None:
        self.stated = stated
        self._measured: dict[str, float] = {}

    def gflop_per_s(self, precision: Literal["auto", "fp32", "bf16"]) -> float:
        if self.stated is not None:
            return self.stated
        precision = settled(precision)
        if precision not in self._measured:
            self._measured[precision] = measure(precision)
        return self._measured[precision]


def settled(precision: Literal["auto", "fp32", "bf16"]) -> Literal["fp32", "bf16"]:
    """What auto means here: without instructions for bfloat16, torch multiplies it at a sixth of
    the rate of float32 (docs/log.md)."""
    if precision != "auto":
        return precision
    is_native = torch.cuda.is_available() or "avx512bf16" in library.supported()
    return "bf16" if is_native else "fp32"


def measure(precision: str) -> float:
    with torch.inference_mode():
        return matmul_gflop_per_s(torch.bfloat16 if precision == "bf16" else torch.float32)
