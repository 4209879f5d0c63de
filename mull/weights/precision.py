"""Which precision a model runs in where nobody says so, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mull.weights import memory
from mull.weights.order import in_gb

if TYPE_CHECKING:
    from mull.model.config import ModelConfig


class Choice(NamedTuple):
    precision: str
    why: str


def auto_precision(
    config: ModelConfig,
    *,
    is_four_bit: bool = False,
    on_cpu: bool = True,
    native: bool = True,
    available: int | None = None,
) -> Choice:
    """What `--precision auto` means: on a CPU with native kernels the fastest that loses nothing.

    That is q4 for a file whose own weights have four bits (is_four_bit), because q4 keeps their
    values, and q8 for any other: it is as good as bf16 by every measure in docs/performance.md and
    reads half the memory for each token. Where q8 does not fit, q4 costs some quality. A GPU runs
    bf16. Without native kernels nothing is faster than plain float32.
    """
    if not on_cpu:
        return Choice("bf16", "the GPU's own precision")
    if not native:
        return Choice("fp32", "without native kernels nothing else is faster")
    if is_four_bit:
        return Choice("q4", "the fastest, and the file's own weights have four bits")
    have = memory.available_memory() if available is None else available
    if memory.needed_bytes(config, "q8") <= have:
        return Choice("q8", "as good as bf16, and reads half as much for each token")
    return Choice("q4", f"8 bits do not fit into the {in_gb(have)} that are free")
