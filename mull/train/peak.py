"""What this machine's matrix products reach at best: the yardstick for utilisation."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_SIZE = 1024
_ROUNDS = 5


class Peak:
    """GFLOP/s by precision, measured when first asked for: about a tenth of a second each.

    Cores change their state from minute to minute on shared machines, so no peak outlives a run.
    """

    def __init__(self) -> None:
        self._measured: dict[str, float] = {}

    def gflop_per_s(self, precision: str) -> float:
        if precision not in self._measured:
            self._measured[precision] = measure(precision)
        return self._measured[precision]


def measure(precision: str) -> float:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.ones(2, _SIZE, _SIZE, dtype=dtype)
    with torch.inference_mode():
        seconds = _best_seconds(lambda: torch.nn.functional.linear(a, b))
    return 2 * _SIZE**3 / seconds / 1e9


def _best_seconds(run: Callable[[], object]) -> float:
    run()
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
