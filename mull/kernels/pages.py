"""Large arrays in huge pages: reading them, or using them for the first time, costs far less."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

HUGE_PAGE = 1 << 21
# Of a part of which less is used, a huge page would take several times the memory in use.
_LEAST_USE = HUGE_PAGE // 2


def zeros_in_huge_pages(
    shape: tuple[int, ...], dtype: torch.dtype, *, used_from_starts: bool = False
) -> Tensor:
    """Zeros on the CPU whose untouched pages take no memory; huge pages where the system has them.

    used_from_starts: along the first axis lie parts that are each used from the start, and seldom
    to the end. The first MB of each stays in small pages, up to three where the parts are not whole
    huge pages long.
    """
    size = math.prod(shape) * dtype.itemsize
    # Only private memory: the shared kind, mmap's own choice, is hardly ever given huge pages.
    if size < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, size + 2 * HUGE_PAGE, flags=flags)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE_PAGE
    with suppress(OSError):  # a kernel built without them
        if used_from_starts:
            start += HUGE_PAGE - _LEAST_USE
            memory.madvise(mmap.MADV_NOHUGEPAGE, start, size)  # some systems give them unasked
            _advise_after_starts(memory, start, size, size // shape[0])
        else:
            memory.madvise(mmap.MADV_HUGEPAGE, start, size)
    return whole[start : start + size].view(dtype).view(shape)


def _advise_after_starts(memory: mmap.mmap, start: int, size: int, part: int) -> None:
    border = start + _LEAST_USE  # of two huge pages
    for first in range(start, start + size, part):
        begin = border + -(-(first + _LEAST_USE - border) // HUGE_PAGE) * HUGE_PAGE
        if begin + HUGE_PAGE <= first + part:
            memory.madvise(mmap.MADV_HUGEPAGE, begin, first + part - begin)
