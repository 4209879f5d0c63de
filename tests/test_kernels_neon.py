"""The ARM kernels, cross-compiled and run under an emulator: the kernels' own tests against the
torch reference, and the results of this processor."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_engine_fused as dense
import test_engine_fused_latent as latent
import torch
from elsewhere import running
from kernel_variants import using
from native_builds import ROOT, build_library, kernel_tests, need, run

from mull.engine.packing import bind
from mull.engine.prepare import prepare
from mull.engine.scheduler import Chunk
from mull.kernels import PackedLinear, library
from mull.kernels.layout import KINDS
from mull.model.transformer import CausalLM

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SAME_SUMS = ("avx512vnni", "avxvnni", "avx2")  # fused multiply-adds, float32 sums


@pytest.fixture(scope="module")
def command() -> list[str]:
    """Starts the driver with the ARM library."""
    compiler, emulator = need(
        COMPILER,
        EMULATOR,
        why="the NEON kernels are not tested (apt-get install g++-aarch64-linux-gnu qemu-user)",
    )
    folder = build_library(
        "neon",
        compiler,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O2",
        "-DMULL_VARIANTS=neon;portable",
    )
    driver, source = folder / "driver", ROOT / "tests" / "native" / "driver.cpp"
    run(compiler, "-O1", "-Wall", "-Wextra", "-fopenmp", "-o", str(driver), str(source), "-ldl")
    libc = Path(run(compiler, "-print-file-name=libc.so.6").strip()).resolve()
    return [emulator, "-L", str(libc.parent.parent), str(driver), str(folder / "mull_kernels.so")]


def run_tests(command: list[str], *arguments: str, **more: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests"),
        "MULL_KERNELS": "",
        "OMP_NUM_THREADS": "1",  # torch's threads would wait where the emulator computes
        "MULL_ELSEWHERE": shlex.join(command),
        "MULL_ELSEWHERE_VARIANT": "neon",
        **more,
    }
    plugins = ["-p", "elsewhere", "-p", "no:cacheprovider"]
    out = run(sys.executable, "-m", "pytest", "-x", *plugins, *arguments, env=environment)
    assert " passed" in out


@pytest.mark.slow
def test_products_pass_their_tests_on_arm_with_and_without_dot_products(command: list[str]) -> None:
    run_tests(command, "tests/test_kernels_linear.py")


@pytest.mark.slow
def test_attention_and_whole_layers_pass_their_tests_on_arm(command: list[str]) -> None:
    files = [file for file in kernel_tests() if not file.endswith("linear.py")]
    # The latter is slow; and a fifth of the shapes, being those of the tests on this processor.
    chosen = "not portable and not more_rows"
    run_tests(command, "-k", chosen, *files, MULL_ELSEWHERE_EVERY="5")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_products_have_this_processors_bits(kind: str, command: list[str]) -> None:
    variants = [name for name in SAME_SUMS if name in library.supported()]
    if not variants:
        pytest.skip("the kernels of this processor sum in another way")
    generator = torch.Generator().manual_seed(7)
    products = []
    for outputs, inputs in ((1, 3), (33, 70), (100, 576)):
        weight, bias = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs)
        x = torch.randn(40, inputs, generator=generator)
        products.append((PackedLinear.pack(weight, bias, kind), x))
    for variant in variants:
        with using(variant):
            expected = [linear(x[:rows]) for linear, x in products for rows in (1, 5, 17, 40)]
        with running(command, "neon"):
            for linear, _ in products:
                linear.bind()
            got = [linear(x[:rows]) for linear, x in products for rows in (1, 5, 17, 40)]
        assert all(map(torch.equal, got, expected))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "make_model"),
    [
        (dense, lambda: dense.make_model(**dense.FAMILIES["qwen3"])),
        (latent, latent.make_model),
    ],
    ids=["grouped queries", "latent attention and experts"],
)
# A last bit may take an activation of a quantised product to the next of its 255 steps.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("q4", 1e-2)])
def test_a_whole_model_gives_this_processors_logits(
    family: Any,
    make_model: Callable[[], CausalLM],
    precision: str,
    tolerance: float,
    command: list[str],
) -> None:
    model = prepare(make_model(), precision=precision, device=family.CPU)
    sequence = family.Cached(family.make_ids(50).tolist(), [3, 1, 7, 9])
    chunks = [Chunk(sequence, 0, 50)]
    expected = family.paged_logits(model, family.make_cache(model), chunks)
    with running(command, "neon"):
        bind(model)
        got = family.paged_logits(model, family.make_cache(model), chunks)
    assert (got - expected).norm() / expected.norm() < tolerance
