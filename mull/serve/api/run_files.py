"""Training runs, read as the files they leave under MULL_HOME/runs; nothing of training is used.

An id is the run's folder with "~" between its parts. Only folders that hold a recipe are runs, and
nothing outside of them is ever read.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import time
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mull.serve.errors import ApiError
from mull.weights import models_home

METRICS, SAMPLES, REPORT = "metrics.jsonl", "samples.jsonl", "report.html"
_DEPTH = 3
_MOST_RUNS = 1000
_SILENT_SECONDS = 600
_MOST_FILE_BYTES = 8 << 20
_MOST_ROWS, _MOST_ROW_BYTES = 2000, 4 << 20
_PART = re.compile(r"[\w][\w. +@=-]{0,99}")
_STATES = {"done": "done", "budget": "stopped", "interrupted": "stopped", "failed": "failed"}


def runs_home() -> Path:
    return models_home().parent / "runs"


def all_runs() -> list[dict[str, Any]]:
    """The newest first."""
    home = runs_home().resolve()
    found = [path for path, _ in zip(_folders(home, _DEPTH), range(_MOST_RUNS), strict=False)]
    runs = [describe(_id(home, path), path) for path in found]
    return sorted(runs, key=lambda run: run["updated"] or "", reverse=True)


def folder_of(id: str) -> Path:
    """The run's folder; ApiError 404 for anything that is no run within the home of runs."""
    home = runs_home().resolve()
    parts = id.split("~")
    if len(parts) <= _DEPTH and all(_PART.fullmatch(part) for part in parts):
        folder = home.joinpath(*parts).resolve()
        if folder.is_relative_to(home) and folder != home and (folder / "recipe.toml").is_file():
            return folder
    raise ApiError(404, f"no run {id[:80]!r}")


def file_in(folder: Path, name: str) -> Path:
    """One of a run's own files; ApiError 404 where it is not there, or a link to elsewhere."""
    file = (folder / name).resolve()
    if not file.is_file() or not file.is_relative_to(folder):
        raise ApiError(404, f"this run has no {name} yet")
    return file


def describe(id: str, folder: Path) -> dict[str, Any]:
    recipe, manifest = _toml(folder / "recipe.toml"), _json(folder / "manifest.json")
    state = _STATES.get(str(manifest.get("status")), "stopped")
    if state == "stopped" and _is_running(folder):
        state = "running"
    steps, ended = _progress(folder / METRICS)
    stages = _stages(recipe, steps, ended, state)
    current = next((stage for stage in stages if stage["state"] in ("running", "stopped")), None)
    return {
        "id": id,
        "name": _text(manifest.get("name")) or _text(recipe.get("name")) or folder.name,
        "about": _text(recipe.get("about")),
        "state": state,
        "stage": current["name"] if current else None,
        "stages": stages,
        "started": _text(manifest.get("started")),
        "updated": _updated(folder),
        "bill": _bill(manifest.get("bill")),
        "has_report": (folder / REPORT).is_file(),
    }


def rows(file: Path, after: int) -> dict[str, Any]:
    """The records after so many lines, a bounded number of them; next: where to go on. A run that
    was set back has fewer lines than were read: then all is told anew, and `reset` says so."""
    found: list[dict[str, Any]] = []
    size = number = 0
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break  # it is just being written
            number += 1
            if number <= after:
                continue
            size += len(line)
            if found and (size > _MOST_ROW_BYTES or len(found) >= _MOST_ROWS):
                number -= 1
                break
            if (record := _record(line)) is not None:
                found.append(record)
    if number < after:
        return {**rows(file, 0), "reset": True}
    return {"rows": found, "next": number}


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    if depth == 0 or not folder.is_dir():
        return
    for each in sorted(folder.iterdir()):
        if not each.is_dir() or each.is_symlink() or not _PART.fullmatch(each.name):
            continue
        if (each / "recipe.toml").is_file():
            yield each
        else:
            yield from _folders(each, depth - 1)


def _id(home: Path, folder: Path) -> str:
    return "~".join(folder.relative_to(home).parts)


def _is_running(folder: Path) -> bool:
    """Whether a process holds the run's lock."""
    try:
        import fcntl
    except ImportError:  # Windows: by what it last wrote
        written = folder / METRICS
        return written.is_file() and time.time() - written.stat().st_mtime < _SILENT_SECONDS
    try:
        with (folder / "run.lock").open("rb") as lock:
            # Shared, and let go of at once: a run that starts just now is not kept from it.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _progress(metrics: Path) -> tuple[dict[str, int], frozenset[str]]:
    """The last step of each stage, and the stages that have ended."""
    if not metrics.is_file():
        return {}, frozenset()
    about = metrics.stat()
    return _progress_of(metrics, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=_MOST_RUNS)
def _progress_of(metrics: Path, _size: int, _changed: int) -> tuple[dict[str, int], frozenset[str]]:
    steps: dict[str, int] = {}
    ended: set[str] = set()
    with metrics.open("rb") as lines:
        for line in lines:
            record = _record(line)
            if record is None or not isinstance(record.get("stage"), str):
                continue
            if isinstance(record.get("step"), int):
                steps[record["stage"]] = record["step"]
            if record.get("kind") == "stage_end":
                ended.add(record["stage"])
    return steps, frozenset(ended)


def _stages(
    recipe: dict[str, Any], steps: dict[str, int], ended: Collection[str], state: str
) -> list[dict[str, Any]]:
    listed = recipe.get("stages")
    named: list[tuple[str, dict[str, Any]]] = []
    if isinstance(listed, dict):
        named = [(name, stage) for name, stage in listed.items() if isinstance(stage, dict)]
    elif isinstance(listed, list):
        named = [(str(stage.get("name")), stage) for stage in listed if isinstance(stage, dict)]
    stages = []
    is_next = state in ("running", "stopped", "failed")
    for name, stage in named:
        if name in ended or state == "done":
            own = "done"
        else:
            own, is_next = (state if is_next else "waiting"), False
        wanted = stage.get("steps")
        stages.append(
            {
                "name": name,
                "kind": str(stage.get("kind", name)),
                "state": own,
                "steps": wanted if isinstance(wanted, int) else None,
                "step": steps.get(name, 0),
            }
        )
    return stages


def _bill(bill: Any) -> dict[str, Any] | None:
    total = bill.get("total") if isinstance(bill, dict) else None
    if not isinstance(total, dict):
        return None
    seconds = _number(total.get("seconds")) or 0.0
    repeated = _number(total.get("repeated_seconds")) or 0.0
    return {
        "seconds": seconds + repeated,
        "joules": _number(total.get("joules")) or None,
        "usd": _number(total.get("dollars")) or None,
    }


def _updated(folder: Path) -> str | None:
    times = [
        (folder / name).stat().st_mtime
        for name in (METRICS, "manifest.json", "recipe.toml")
        if (folder / name).is_file()
    ]
    if not times:
        return None
    moment = datetime.datetime.fromtimestamp(max(times), datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_bounded(path))
    except (OSError, ValueError, RecursionError):
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_bounded(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _bounded(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_FILE_BYTES).decode("utf-8")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
