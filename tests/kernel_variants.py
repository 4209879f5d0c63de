"""Running one test under every instruction set this processor has, and under torch."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings

from mull.kernels import library

VARIANTS = library.VARIANTS


def examples(count: int) -> settings:
    """So many drawn examples, or as few as the profile in use asks for."""
    return settings(max_examples=min(count, settings().max_examples), deadline=None)


@contextmanager
def using(variant: str) -> Iterator[None]:
    """The native kernels in one variant, then back to the one chosen at start."""
    if variant not in library.supported():
        pytest.skip(f"this processor or build has no {variant}")
    chosen = library.describe()["isa"]
    library.select(variant)
    try:
        yield
    finally:
        library.select(chosen)


@contextmanager
def without_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MULL_KERNELS", "torch")
    library._native.cache_clear()
    try:
        yield
    finally:
        monkeypatch.undo()
        library._native.cache_clear()
