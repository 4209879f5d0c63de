"""What a run's manifest says about where it was made: versions, commit, hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

import mull

_PACKAGES = ("torch", "numpy", "tokenizers", "safetensors")


def provenance() -> dict[str, Any]:
    """Versions, the commit of mull's own checkout (None when installed), hardware; JSON-able."""
    return {"versions": _versions(), "commit": _commit(), "hardware": _hardware()}


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"mull": mull.__version__, "python": platform.python_version(), **packages}


def _commit() -> str | None:
    """The commit, with "+changes" when files of mull differ from it."""
    room = Path(mull.__file__).parent
    try:
        # A package installed inside somebody's repository is not part of it.
        _git(room, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(room, "rev-parse", "HEAD")
        is_changed = bool(_git(room, "status", "--porcelain", "--", "."))
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if is_changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
        env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
    )
    return done.stdout.strip()


def _hardware() -> dict[str, Any]:
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "accelerators": devices,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
