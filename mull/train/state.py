"""Checkpoints of a run, and the lock that keeps a second process out of its folder.

A checkpoint is a folder: tensors.safetensors, facts.json, and checkpoint.json with the size and
SHA-256 of both. It is written under a temporary name, reaches the disk, and gets its own name in
one rename, so that after a kill at any moment the last whole one is there. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mull.errors import TrainError

LOCK_NAME = "run.lock"
_TENSORS, _FACTS, _CONTENTS = "tensors.safetensors", "facts.json", "checkpoint.json"
_FORMAT = 1
_NAME = re.compile(r"(\d{6,})-.+")
_UNFINISHED = ".unfinished-"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What was saved. facts came through JSON: tuples are lists, keys are strings.

    Tensors that shared memory when they were saved (tied weights) no longer do.
    """

    path: Path
    position: dict[str, Any]
    facts: dict[str, Any]
    scores: dict[str, float]
    tensors: dict[str, Tensor]


class Checkpoints:
    """The checkpoints in one folder: the `keep_last` newest, and the newest stage's best ones.

    One process writes at a time (see RunLock); reading needs no lock.
    """

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        if keep_last < 1:
            raise ValueError("keep_last: at least one checkpoint is kept")
        self._folder = folder
        self._keep_last = keep_last
        self._damaged: set[Path] = set()
        self._summaries: dict[Path, tuple[str, dict[str, float]]] = {}  # stage and scores

    def save(
        self,
        position: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        scores: Mapping[str, float] | None = None,
    ) -> Path:
        """Write a checkpoint and remove those no longer kept; returns its folder.

        position: at least "stage" and "step". scores: the more the better; the best of each name
        within a stage is kept while that stage lasts. Raises TrainError when the disk refuses;
        earlier checkpoints are then untouched.
        """
        stage, step = str(position["stage"]), int(position["step"])
        present = self._all()
        number = 1 + max((_number(path) for path in present), default=0)
        path = self._folder / f"{number:06d}-{stage}-{step}"
        unfinished = self._folder / f"{_UNFINISHED}{path.name}"
        written = {"position": dict(position), "scores": dict(scores or {}), "facts": dict(facts)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            unfinished.mkdir()
            _write(unfinished, written, tensors)
            unfinished.rename(path)
            sync_folder(self._folder)
        except (OSError, SafetensorError) as error:
            kept = present[-1].name if present else "none before it"
            raise TrainError(
                f"{self._folder}: the checkpoint of stage {stage}, step {step} could not be written"
                f" ({reason(error)}); free some space and resume; the last whole one: {kept}"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        self._summaries[path] = (stage, dict(scores or {}))
        self._remove_old()
        return path

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None where none was ever written.

        Damaged ones are passed over with a warning; TrainError when there is nothing else.
        """
        for path in reversed(self._all()):
            if (checkpoint := self._load(path)) is not None:
                return checkpoint
        if self._damaged:
            raise TrainError(
                f"{self._folder}: every checkpoint is damaged; start the run anew in another folder"
            )
        return None

    def best(self, stage: str, score: str) -> Checkpoint | None:
        """The whole one of a stage whose score is highest, the earliest of equal ones."""
        summaries = {path: self._summary(path) for path in self._whole()}
        ranked = map(self._load, _ranked(score, summaries, stage))
        return next((checkpoint for checkpoint in ranked if checkpoint is not None), None)

    def _all(self) -> list[Path]:
        """Every checkpoint by age, oldest first."""
        if not self._folder.is_dir():
            return []
        found = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=_number)

    def _whole(self) -> list[Path]:
        for path in self._all():
            self._summary(path)
        return [path for path in self._all() if path not in self._damaged]

    def _summary(self, path: Path) -> tuple[str, dict[str, float]]:
        if path not in self._summaries:
            try:
                written = json.loads((path / _FACTS).read_text(encoding="utf-8"))
                self._summaries[path] = (written["position"]["stage"], written["scores"])
            except (OSError, ValueError, KeyError, TypeError):
                self._damaged.add(path)
                return "", {}
        return self._summaries[path]

    def _load(self, path: Path) -> Checkpoint | None:
        try:
            written = _check(path)
            tensors = load_file(path / _TENSORS)
            return Checkpoint(
                path, written["position"], written["facts"], written["scores"], tensors
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            if path not in self._damaged:
                _log.warning("checkpoint %s is damaged (%s): passed over", path, reason(error))
            self._damaged.add(path)
            return None

    def _remove_old(self) -> None:
        # Damaged ones take no place of whole ones; they go as soon as there is a newer whole one.
        whole = self._whole()
        summaries = {path: self._summary(path) for path in whole}
        stage = summaries[whole[-1]][0]
        kept = set(whole[-self._keep_last :])
        for score in {name for _stage, scores in summaries.values() for name in scores}:
            kept.update(_ranked(score, summaries, stage)[:1])
        for path in self._all():
            if path not in kept:
                # One rename first: half a removed checkpoint must not look like a damaged one.
                doomed = path.with_name(_UNFINISHED + path.name)
                try:
                    path.rename(doomed)
                except OSError as error:
                    _log.warning("checkpoint %s could not be removed: %s", path, reason(error))
                    continue
                shutil.rmtree(doomed, ignore_errors=True)
                self._summaries.pop(path, None)
                self._damaged.discard(path)

    def _remove_unfinished(self) -> None:
        for path in self._folder.glob(_UNFINISHED + "*"):
            shutil.rmtree(path, ignore_errors=True)


class RunLock:
    """Held by the one process that writes a run folder; the system frees it when the process dies.

    Entering raises TrainError at once when another holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / LOCK_NAME, timeout=0)

    def __enter__(self) -> RunLock:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise TrainError(
                f"{self._folder}: another process is training here; wait for it, or give --out"
            ) from None
        except OSError as error:
            raise TrainError(f"{self._folder}: cannot be written ({reason(error)})") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._lock.release()


def reason(error: Exception) -> str:
    """The system's own words for an error, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def sync_folder(folder: Path) -> None:
    """Names in a folder reach the disk only when the folder does."""
    _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _ranked(
    score: str, summaries: Mapping[Path, tuple[str, dict[str, float]]], stage: str
) -> list[Path]:
    having = [
        p for p, (its_stage, scores) in summaries.items() if its_stage == stage and score in scores
    ]

    def rank(path: Path) -> tuple[bool, float]:
        found = summaries[path][1][score]
        return math.isnan(found), -found

    return sorted(having, key=rank)


def _write(folder: Path, written: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    save_file(_separate(tensors), folder / _TENSORS)
    _sync(folder / _TENSORS, os.O_RDWR)
    _write_synced(folder / _FACTS, json.dumps(written))
    files = {name: _described(folder / name) for name in (_TENSORS, _FACTS)}
    _write_synced(folder / _CONTENTS, json.dumps({"format": _FORMAT, "files": files}, indent=1))
    sync_folder(folder)


def _write_synced(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two of which share memory (safetensors refuses those)."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return separate


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _check(path: Path) -> dict[str, Any]:
    """facts.json of a checkpoint whose every byte is the one written; ValueError otherwise."""
    contents = json.loads((path / _CONTENTS).read_text(encoding="utf-8"))
    if contents["format"] != _FORMAT:
        raise ValueError(f"written by another mull: format {contents['format']}")
    for name in (_TENSORS, _FACTS):
        if _described(path / name) != contents["files"][name]:
            raise ValueError(f"{name} is not what was written")
    written: dict[str, Any] = json.loads((path / _FACTS).read_text(encoding="utf-8"))
    return written
