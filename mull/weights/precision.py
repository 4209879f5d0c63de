"""Which precision a model runs in where nobody says so, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mull.weights import memory
from mull.weights.order import in_gb

if TYPE_CHECKING:
    from mull.model.config import ModelConfig


# Below this many parameters bf16 is fast on any processor, and int8 activations tell: SmolLM2-135M
# loses 0.004 nats of KL to them, and answers close questions differently.
_SMALL = 10**9


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
    """What `--precision auto` means: on a CPU with native kernels the fastest that loses little.

    bf16 for a small model. Else q4 for a file whose own weights have four bits (is_four_bit),
    because q4 keeps their values, and q8 for any other; where that does not fit, q4, at some cost
    of quality. A GPU runs bf16. Without native kernels nothing is faster than plain float32.
    """
    if not on_cpu:
        return Choice("bf16", "the GPU's own precision")
    if not native:
        return Choice("fp32", "without native kernels nothing else is faster")
    have = memory.available_memory() if available is None else available
    is_small = config.parameter_count()[0] < _SMALL
    if is_small and memory.needed_bytes(config, "bf16") <= have:
        return Choice("bf16", "small enough to be fast unquantised (q4 is the fastest)")
    if is_four_bit:
        return Choice("q4", "the fastest, and the file's own weights have four bits")
    if memory.needed_bytes(config, "q8") <= have:
        return Choice("q8", "nearly as good as bf16, and reads half as much for each token")
    return Choice("q4", f"8 bits do not fit into the {in_gb(have)} that are free")
