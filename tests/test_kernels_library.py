"""Finding, choosing and describing the native library."""

import shutil
import subprocess
import sys
import timeit
from pathlib import Path

import pytest
import torch
from kernel_variants import without_native
from native_builds import ROOT, need

from mull import kernels
from mull.errors import KernelError
from mull.kernels import library
from mull.kernels.peaks import _int8_rate


def test_native_kernels_are_built_where_a_compiler_is() -> None:
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler here")
    assert kernels.native_available(), kernels.describe()["reason"]
    assert kernels.describe()["isa"] in library.VARIANTS
    assert kernels.describe()["threads"] == torch.get_num_threads()


def test_torch_and_the_kernels_share_one_openmp_runtime() -> None:
    program = (
        "import torch, mull.kernels as k\n"
        "k.PackedLinear.pack(torch.ones(64, 64), None, 'fp32')(torch.ones(8, 64))\n"
        "maps = open('/proc/self/maps').read().splitlines()\n"
        "names = ('libgomp', 'libomp', 'libiomp5')\n"
        "print(len({m.split()[-1] for m in maps if any(n in m for n in names)}))\n"
        "print(k.describe()['openmp'])\n"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    lines = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.splitlines()
    assert lines[0] == "1"
    assert lines[1].startswith(("libgomp", "libomp", "libiomp5"))


def test_switching_off_says_so_and_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    with without_native(monkeypatch):
        described = kernels.describe()
        assert not kernels.native_available()
        assert described["isa"] == "torch"
        assert "MULL_KERNELS=torch" in described["reason"]
        assert "slower" in described["cost"]


def test_a_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULL_KERNELS", raising=False)
    monkeypatch.setattr(library, "_find", lambda: None)
    assert "no C++ compiler" in library._Native().reason


@pytest.mark.parametrize("source", ["", "extern {} void mull_sizes(long long* s) {{ *s = 8; }}"])
def test_a_library_of_another_version_is_not_used(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (compiler,) = need("g++", why="no other library can be built")
    others = "".join(f'extern "C" void {name}() {{}}\n' for name in library._SIGNATURES if source)
    others = others.replace('extern "C" void mull_sizes() {}', source.format('"C"'))
    (tmp_path / "old.cpp").write_text(others, encoding="utf-8")
    built = tmp_path / "mull_kernels.so"
    subprocess.run([compiler, "-shared", "-fPIC", tmp_path / "old.cpp", "-o", built], check=True)
    monkeypatch.delenv("MULL_KERNELS", raising=False)
    monkeypatch.setattr(library, "_find", lambda: built)
    native = library._Native()
    assert native.library is None
    assert "another version" in native.reason


def test_an_unknown_or_unsupported_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match="neon"):
        library.select("neon")
    monkeypatch.setenv("MULL_KERNELS", "sse9")
    with pytest.raises(KernelError, match="sse9"):
        library._Native()


def test_the_environment_chooses_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = library.describe()["isa"]
    monkeypatch.setenv("MULL_KERNELS", "portable")
    native = library._Native()
    assert native.library is not None
    assert native.library.mull_selected() == b"portable"
    library.select(chosen)


@pytest.mark.parametrize("compiler", [None, "/nowhere/c++"])
def test_without_a_compiler_the_package_configures_and_installs_nothing(
    compiler: str | None, tmp_path: Path
) -> None:
    cmake, make = need("cmake", "make", why="nothing can be configured")
    (tmp_path / "make").symlink_to(make)
    only = {"PATH": str(tmp_path)} | ({"CXX": compiler} if compiler else {})
    build, target = tmp_path / "build", tmp_path / "target"
    configured = subprocess.run(
        [cmake, "-G", "Unix Makefiles", "-S", ROOT, "-B", build],
        capture_output=True,
        text=True,
        env=only,
        check=False,
    )
    assert configured.returncode == 0, configured.stderr
    assert "no C++ compiler: mull is installed without" in configured.stderr
    for step in (["--build", build], ["--install", build, "--prefix", target]):
        subprocess.run([cmake, *step], capture_output=True, env=only, check=True)
    assert not list(target.rglob("*"))


def test_the_memory_of_one_large_call_is_given_back() -> None:
    code = (
        "import psutil, torch\n"
        "from mull.kernels import PackedLinear\n"
        "resident = lambda: psutil.Process().memory_info().rss\n"
        "linear = PackedLinear.pack(torch.ones(32, 4096), None, 'fp32')\n"
        "linear(torch.ones(4, 4096))\n"
        "before = resident()\n"
        "linear(torch.ones(8192, 4096))\n"  # 128 MB, and as much for the rows in form
        "print(resident() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 * 10**6


def test_a_thread_can_dismiss_its_team():
    """libgomp stops spinning once there are more team threads than cores."""
    code = (
        "import os, time, torch\n"
        "from mull import kernels\n"
        "torch.set_num_threads(2)\n"
        "end = time.monotonic() + 60\n"
        "threads = lambda: len(os.listdir('/proc/self/task'))\n"
        "alone = threads()\n"
        "torch.ones(1 << 20).sum()\n"
        "with_team = threads()\n"
        "kernels.release_threads()\n"
        "while threads() > alone and time.monotonic() < end:\n"  # its exit shows a moment later
        "    time.sleep(0.01)\n"
        "print(with_team - alone, threads() - alone)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


def test_no_product_is_faster_than_the_peak_of_whole_numbers() -> None:
    """Nor far below it."""
    if not kernels.native_available():
        pytest.skip("needs the native kernels")
    linear = kernels.PackedLinear.pack(torch.zeros(256, 1024), None, "q4")
    x_MK = torch.zeros(128, 1024)
    operations = 2 * x_MK.numel() * 256
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    peak, rate, share = 0.0, 0.0, 0.0
    try:
        for _ in range(20):  # a neighbour may take the core from either
            seconds = min(timeit.repeat(lambda: linear(x_MK), number=15, repeat=5)) / 15
            peak, rate = max(peak, _int8_rate(3)), max(rate, operations / seconds / 1e9)
            if 0.05 < (share := rate / peak) < 1:
                return
    finally:
        torch.set_num_threads(threads)
    pytest.fail(f"a product at {share:.0%} of the peak")
