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
    on_cpu: bool = True,
    native: bool = True,
    available: int | None = None,
) -> Choice:
    """What `--precision auto` means: q8 where it fits, else q4, on a CPU with native kernels.

    8 bits with a scale per 32 are as good as bf16 by every measure in docs/performance.md and read
    half the memory for each token; 4 bits cost some quality, so they are only taken for a model
    that would not run otherwise, or when asked for. A GPU runs bf16. Without native kernels nothing
    is faster than plain float32.
    """
    if not on_cpu:
        return Choice("bf16", "the GPU's own precision")
    if not native:
        return Choice("fp32", "without native kernels nothing else is faster")
    have = memory.available_memory() if available is None else available
    if memory.needed_bytes(config, "q8") <= have:
        return Choice("q8", "fits, reads half of what bf16 reads, and is as good")
    return Choice("q4", f"8 bits do not fit into the {in_gb(have)} that are free")
