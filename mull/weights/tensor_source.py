"""A tensor that still lies in a file: its shape now, its rows when asked for.

Both file formats are brought to this one form under the checkpoint's (Hugging Face) names, so that
the loader copies rows into parameters without knowing where they came from, and never holds more
than a few rows beside the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

# Values converted at a time: 256 k float32 are 1 MB that stay in cache.
CHUNK_VALUES = 1 << 18


@dataclass(frozen=True)
class TensorSource:
    """`read(start, stop)` gives rows start..stop along the first dimension, in any float type.

    origin: the file, for error messages. row_group: start must be a multiple of it, because these
    rows were permuted or scaled together. kind: the file's name of the stored type.
    """

    name: str
    shape: tuple[int, ...]
    origin: Path
    read: Callable[[int, int], Tensor]
    row_group: int = 1
    kind: str = ""

    @property
    def rows_per_chunk(self) -> int:
        row_values = max(1, math.prod(self.shape[1:]))
        groups = max(1, CHUNK_VALUES // (row_values * self.row_group))
        return groups * self.row_group

    @property
    def values(self) -> int:
        return math.prod(self.shape)
