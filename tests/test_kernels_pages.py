"""Where large arrays lie: in huge pages, of which none is taken before it is used."""

import mmap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mull.kernels.pages import HUGE_PAGE, zeros_in_huge_pages

MB = 1 << 20


def needs_huge_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[never]" in setting.read_text():
        pytest.skip("this system has no huge pages")


def resident(array: Tensor, kind: str = "Rss") -> int:
    """Bytes in memory of the mappings that lie within an array; kind: a field of smaps."""
    begin, found, inside = array.data_ptr(), 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            first, last = (int(part, 16) for part in name.split("-"))
            inside = first < begin + array.nbytes and last > begin
        elif inside and name == f"{kind}:":
            found += int(values[0]) * 1024
    return found


def test_a_large_array_lies_in_huge_pages_once_it_is_used() -> None:
    needs_huge_pages()
    array = zeros_in_huge_pages((64, MB), torch.uint8)
    assert resident(array) == 0
    array.fill_(1)
    assert resident(array) == 64 * MB
    assert resident(array, "AnonHugePages") > 0


@pytest.mark.parametrize("part", [16 * MB, 16 * MB + 384])
def test_of_parts_used_from_the_start_little_use_takes_little_memory(part: int) -> None:
    needs_huge_pages()
    array = zeros_in_huge_pages((4, part), torch.uint8, used_from_starts=True)
    array[:, :MB] = 1
    assert resident(array) < 5 * MB
    array.fill_(1)
    assert 0 < resident(array, "AnonHugePages") <= 4 * (part - MB)


@settings(max_examples=20, deadline=None)
@given(
    parts=st.integers(1, 3),
    part=st.integers(1, 20) | st.integers(HUGE_PAGE - 9, HUGE_PAGE + 9) | st.just(7 * MB + 24),
    dtype=st.sampled_from([torch.int8, torch.bfloat16, torch.float32]),
    used_from_starts=st.booleans(),
    has_flags=st.booleans(),
)
def test_an_array_of_any_size_is_zeros_that_can_be_written(
    parts: int, part: int, dtype: torch.dtype, used_from_starts: bool, has_flags: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not has_flags:  # as on Windows
            for name in ("MADV_HUGEPAGE", "MADV_NOHUGEPAGE", "MAP_PRIVATE", "MAP_ANONYMOUS"):
                patch.delattr(mmap, name, raising=False)
        array = zeros_in_huge_pages((parts, part), dtype, used_from_starts=used_from_starts)
    assert (array.shape, array.dtype) == ((parts, part), dtype)
    assert not array.any()
    assert array.data_ptr() % 64 == 0
    array[:] = torch.arange(1, parts + 1)[:, None]
    assert array.double().mean(1).tolist() == list(range(1, parts + 1))
