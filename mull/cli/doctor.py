"""`mull doctor`: the machine, what mull uses of it, and what to mend."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mull.cli.options import JsonOption, ThreadsOption
from mull.cli.terminal import in_gb, print_json, print_table


@dataclass(frozen=True)
class Problem:
    """A warning costs speed or comfort; an error keeps mull from working."""

    severity: Literal["warning", "error"]
    what: str
    mend: str


def doctor(threads: ThreadsOption = None, as_json: JsonOption = False) -> int:
    """Examine this machine and name problems.

    Hardware, kernels in use, measured peaks, the model store; every problem with its mend. Exits
    with 1 when one of them keeps mull from working.
    """
    report = examine(threads)
    problems = list(find_problems(report))
    if as_json:
        print_json(report | {"problems": [asdict(problem) for problem in problems]})
    else:
        print_table(("", ""), _lines(report))
        for problem in problems:
            print(f"{problem.severity}: {problem.what}: {problem.mend}")
        if not problems:
            print("no problems found")
    return 1 if any(problem.severity == "error" for problem in problems) else 0


def examine(threads: int | None = None) -> dict[str, Any]:
    """The facts `mull doctor` prints, as plain data; bytes and bytes/s in decimal units."""
    import psutil
    import torch

    import mull
    from mull import kernels, weights
    from mull.errors import RequestError
    from mull.kernels.peaks import measure_peaks

    if threads is not None:
        if not 1 <= threads <= 4096:
            raise RequestError(f"threads is {threads}, but must be a number from 1 to 4096")
        torch.set_num_threads(threads)
    memory = psutil.virtual_memory()
    store = weights.models_home()
    return {
        "mull": mull.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "cpus": os.cpu_count() or 1,
        "cpus_allowed": _cpus_allowed(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "kernels": {"native": kernels.native_available(), **kernels.describe()},
        "peaks": asdict(measure_peaks()),
        "store": str(store),
        "store_writable": _can_write(store),
        "store_free_bytes": shutil.disk_usage(_nearest_folder(store)).free,
        "models": [files.name for files in weights.pulled_models()],
    }


def find_problems(report: dict[str, Any]) -> Iterator[Problem]:
    """What the facts of `examine` mean for the user."""
    if not report["store_writable"]:
        yield Problem(
            "error",
            f"the model store {report['store']} cannot be written",
            "make it writable, or set MULL_HOME to a folder that is",
        )
    if not report["kernels"]["native"]:
        why = report["kernels"].get("reason") or "no native kernels"
        yield Problem(
            "warning",
            f"native kernels are off, answers come from plain torch, several times slower ({why})",
            "install a C++17 compiler (g++ or clang++) and install mull again",
        )
    if report["threads"] > report["cpus_allowed"]:
        yield Problem(
            "warning",
            f"{report['threads']} threads share {report['cpus_allowed']:g} processors",
            f"--threads {max(1, int(report['cpus_allowed']))}",
        )
    if report["store_free_bytes"] < 2e9:
        yield Problem(
            "warning",
            f"the disk of the model store has {in_gb(report['store_free_bytes'])} free",
            "make room (mull rm MODEL), or set MULL_HOME to a larger disk",
        )
    if report["memory_available_bytes"] < 1e9:
        yield Problem(
            "warning",
            f"{in_gb(report['memory_available_bytes'])} of memory is available",
            "close other programs; mull show MODEL says what fits",
        )
    if not report["models"]:
        yield Problem("warning", "no model is pulled yet", "mull pull smollm2-135m")


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # no Linux
        pass
    return platform.processor() or platform.machine()


def _cpus_allowed() -> float:
    """Processors this process may use: affinity, and a container's quota."""
    allowed = (
        float(len(os.sched_getaffinity(0)))
        if hasattr(os, "sched_getaffinity")
        else float(os.cpu_count() or 1)
    )
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, _, period = quota_file.read_text(encoding="ascii").strip().partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            allowed = min(allowed, int(quota) / int(period))
    return allowed


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def _can_write(path: Path) -> bool:
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    peaks, kernels = report["peaks"], report["kernels"]
    details = ", ".join(
        f"{name} {value}" for name, value in kernels.items() if name != "native" and value
    )
    return [
        ("mull", f"{report['mull']}, Python {report['python']}, torch {report['torch']}"),
        ("system", report["system"]),
        ("cpu", f"{report['cpu']}, {report['cores']} cores, {report['cpus']} processors"),
        ("threads", str(report["threads"])),
        (
            "memory",
            f"{in_gb(report['memory_bytes'])}, {in_gb(report['memory_available_bytes'])} available",
        ),
        ("gpu", report["cuda"] or "none that torch can use"),
        ("kernels", f"{'native' if kernels['native'] else 'plain torch'}: {details}"),
        ("memory read", f"{peaks['read_gb_per_s']} GB/s measured"),
        (
            "matrix products",
            f"{peaks['fp32_gflop_per_s']} GFLOP/s fp32, "
            f"{peaks['bf16_gflop_per_s']} GFLOP/s bf16 measured",
        ),
        ("model store", f"{report['store']}, {in_gb(report['store_free_bytes'])} free"),
        ("models", ", ".join(report["models"]) or "none"),
    ]
