"""The kernels under ASan and UBSan: their own tests once more, on a build that stops at the first
touch of foreign memory and at undefined behaviour."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from native_builds import ROOT, build_library, kernel_tests, need, run

from mull.kernels import library

PAST_THE_END = """
import ctypes, torch
from mull.kernels import PackedLinear, library
linear = PackedLinear.pack(torch.ones(40, 64), None, "fp32")
linear.native.n = 80
linear(torch.ones(1, 64))
print("not noticed")
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """In which Python loads a sanitised library: this processor's best variant and a plain one."""
    (compiler,) = need("g++", why="the sanitised library cannot be built")
    runtimes = [_runtime(compiler, name) for name in ("libasan.so", "libstdc++.so")]
    second = "avx2" if platform.machine() == "x86_64" else "portable"
    variants = dict.fromkeys((*library.supported()[:1], second))
    folder = build_library(
        "sanitised",
        compiler,
        "-DMULL_SANITIZE=ON",
        f"-DMULL_VARIANTS={';'.join(variants)}",
    )
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(runtimes),  # the sanitiser's needs C++ exceptions from the start
        # Fresh memory is filled, so that a read before any write gives something odd.
        "ASAN_OPTIONS": "detect_leaks=0:max_malloc_fill_size=1048576",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT / "tests"),
        "MULL_OTHER_LIBRARY": str(folder),
        "MULL_KERNELS": "",
    }


def _runtime(compiler: str, name: str) -> str:
    path = Path(run(compiler, f"-print-file-name={name}").strip())
    if not path.is_absolute():
        pytest.skip(f"{compiler} has no {name} here")
    return str(path.resolve())


@pytest.mark.slow
def test_the_kernels_tests_pass_on_a_sanitised_build(environment: dict[str, str]) -> None:
    plugins = ["-p", "other_library", "-p", "no:faulthandler", "-p", "no:cacheprovider"]
    out = run(
        sys.executable, "-m", "pytest", "-x", "-s", *plugins, *kernel_tests(), env=environment
    )
    assert " passed" in out


@pytest.mark.slow
def test_the_sanitised_build_notices_a_read_past_the_weights(environment: dict[str, str]) -> None:
    program = f"import other_library\nother_library.pytest_configure()\n{PAST_THE_END}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert "not noticed" not in done.stdout
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
