"""Building the native library otherwise than it is installed, once per state of its sources."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILDS = ROOT / "build" / "checks"


def tool(name: str) -> str | None:
    """A program on the path or beside this Python, where pip installs cmake."""
    return shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)


def need(*names: str, why: str) -> list[str]:
    """The programs' paths; without one of them the test is skipped."""
    missing = [name for name in names if tool(name) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} here: {why}")
    return [str(tool(name)) for name in names]


def _sources_hash(options: list[str]) -> str:
    files = sorted((ROOT / "mull" / "kernels" / "native").iterdir())
    digest = hashlib.sha256("\0".join(options).encode())
    for file in (ROOT / "CMakeLists.txt", *files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def build_library(name: str, compiler: str, *options: str) -> Path:
    """The folder of a mull_kernels.so built with these CMake options; older ones of `name` go."""
    (cmake,) = need("cmake", why="the library cannot be built")
    options = (*options, f"-DCMAKE_CXX_COMPILER={compiler}", "-DCMAKE_BUILD_TYPE=Release")
    folder = BUILDS / f"{name}-{_sources_hash(list(options))}"
    if not (folder / "mull_kernels.so").is_file():
        for other in BUILDS.glob(f"{name}-*"):
            shutil.rmtree(other)
        run(cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Unix Makefiles", *options)
        run(cmake, "--build", str(folder), "--parallel", "2")
    return folder


def kernel_tests() -> list[str]:
    """The files whose tests compute with the kernels."""
    others = {f"test_kernels_{name}.py" for name in ("library", "neon", "sanitised")}
    patterns = ("test_kernels_*.py", "test_engine_fused*.py")
    patterns += ("test_engine_guess*.py", "test_engine_decode_loop.py")
    files = [file for pattern in patterns for file in (ROOT / "tests").glob(pattern)]
    return sorted(str(file) for file in files if file.name not in others)


def run(*command: str, env: dict[str, str] | None = None) -> str:
    """stdout; both streams in the failure."""
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    if done.returncode:
        pytest.fail(f"{command[0]} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
