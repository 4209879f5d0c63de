"""The folder a run leaves: recipe, metrics, samples, checkpoints, report, manifest.

    recipe.toml     the whole recipe with its overrides: `mull train` on it repeats the run
    metrics.jsonl   what was measured (mull.train.metrics); samples.jsonl: answers looked at
    checkpoints/    mull.train.state; tensorboard/: one folder of events per stage
    report.html     mull.train.report; manifest.json: seed, data, commit, versions, hardware, bill
    final/          the result, a model in Hugging Face layout

A run that was killed is resumed from a checkpoint: `marks` are saved in it, and `rewind` cuts the
logs back to them, so they end up as those of a run that was never killed.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w

from mull.errors import RecipeError, TrainError
from mull.train.changes import changed_keys
from mull.train.figures import number
from mull.train.json_lines import JsonLines, read_json_lines
from mull.train.provenance import provenance
from mull.train.recipe import Recipe
from mull.train.recipe_file import parse_recipe
from mull.train.state import LOCK_NAME, Checkpoints, RunLock, reason, sync_folder

RECIPE_NAME, MANIFEST_NAME, REPORT_NAME = "recipe.toml", "manifest.json", "report.html"
METRICS_NAME, SAMPLES_NAME = "metrics.jsonl", "samples.jsonl"
# The first half of distill, its answers, counts steps of its own under the stage's name and this.
ANSWERS = ".answers"
# Changing these changes no weights: what the run costs, when it ends, what it is about.
_HARMLESS = ("about", "budget", "machine")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Discarded:
    """What a rewind cut off: records by file, and the seconds of work by stage that were lost since
    the manifest's bill."""

    records: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class RunFolder:
    """An open run folder, locked against other processes; a context manager.

    Made by `start` or `resume`; `metrics` and `samples` are its logs, `checkpoints` its states.
    """

    def __init__(self, path: Path, recipe: Recipe, lock: RunLock, keep_last: int) -> None:
        self.path = path
        self.recipe = recipe
        self.checkpoints = Checkpoints(path / "checkpoints", keep_last)
        self.metrics = JsonLines(path / METRICS_NAME)
        self.samples = JsonLines(path / SAMPLES_NAME)
        self._lock = lock

    @classmethod
    def start(cls, path: Path, recipe: Recipe, *, keep_last: int = 2) -> RunFolder:
        """A new run. Raises TrainError when the folder holds anything or cannot be written."""
        lock = RunLock(path).__enter__()
        try:
            if holds_run(path):
                raise TrainError(f"{path}: holds a run already; resume it, or give another --out")
            if found := sorted(p.name for p in path.iterdir() if not _is_ours(p.name)):
                raise TrainError(f"{path}: is not empty ({found[0]}); give a new folder as --out")
            _write(path / RECIPE_NAME, recipe_text(recipe))
            run = cls(path, recipe, lock, keep_last)
            run.update_manifest(
                name=recipe.name, seed=recipe.seed, started=_now(), status="running", **provenance()
            )
        except OSError as error:
            lock.__exit__()
            raise TrainError(f"{path}: cannot be written ({reason(error)})") from error
        except BaseException:
            lock.__exit__()
            raise
        return run

    @classmethod
    def resume(
        cls,
        path: Path,
        recipe: Recipe | None = None,
        *,
        allow_changes: bool = False,
        keep_last: int = 2,
    ) -> RunFolder:
        """Go on with a run, with its own recipe or the one given.

        Raises TrainError when there is no run, or the recipe differs in what could change the
        result and `allow_changes` is False: it names the keys. Harmless changes are taken over.
        """
        if not holds_run(path):
            raise TrainError(f"{path}: holds no run; leave out --resume to start one")
        lock = RunLock(path).__enter__()
        try:
            old = read_recipe(path)
            recipe = recipe or parse_recipe(old, where=str(path / RECIPE_NAME), folder=path)
            changed = changed_keys(old, recipe_values(recipe))
            telling = [key for key in changed if key.partition(".")[0] not in _HARMLESS]
            if telling and not allow_changes:
                raise TrainError(
                    f"{path}: the recipe has changed since the run began: {', '.join(telling)}; "
                    "resume with the old values, allow the changes, or give another --out"
                )
            if changed:
                _write(path / RECIPE_NAME, recipe_text(recipe))
            run = cls(path, recipe, lock, keep_last)
            run._note_resume(changed)
        except OSError as error:
            lock.__exit__()
            raise TrainError(f"{path}: cannot be written ({reason(error)})") from error
        except BaseException:
            lock.__exit__()
            raise
        return run

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def marks(self) -> dict[str, int]:
        """How long the logs are now, safely on disk; belongs into a checkpoint's facts."""
        for log in (self.metrics, self.samples):
            log.sync()
        return {METRICS_NAME: self.metrics.size, SAMPLES_NAME: self.samples.size}

    def rewind(self, marks: Mapping[str, int]) -> Discarded:
        """Cut the logs back to a checkpoint's marks ({}: to nothing), before going on from it."""
        gone = self.metrics.rewind(marks.get(METRICS_NAME, 0))
        samples = self.samples.rewind(marks.get(SAMPLES_NAME, 0))
        names = {stage.name for stage in self.recipe.stages}
        billed = number(self.manifest().get("billed")) or 0.0
        seconds: dict[str, float] = {}
        for record in gone:
            timing = record.get("time")
            if record.get("kind") != "step" or not isinstance(timing, dict):
                continue
            if (number(timing.get("at")) or 0.0) > billed:
                name = str(record.get("stage"))
                stage = name if name in names else name.removesuffix(ANSWERS)
                lost = number(timing.get("seconds")) or 0.0
                seconds[stage] = seconds.get(stage, 0.0) + lost
        return Discarded({METRICS_NAME: len(gone), SAMPLES_NAME: len(samples)}, seconds)

    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.path)

    def update_manifest(self, **values: Any) -> None:
        """Set top-level values (data, bill, status, finished, ...); the rest stays."""
        written = read_manifest(self.path) | values
        _write(self.path / MANIFEST_NAME, json.dumps(written, indent=1) + "\n")

    def note_bill(self, bill: Mapping[str, Any], **values: Any) -> None:
        """`Bill.to_dict()`, as it stands now."""
        self.update_manifest(bill=bill, billed=time.time(), **values)

    def close(self) -> None:
        self.metrics.close()
        self.samples.close()
        self._lock.__exit__()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _note_resume(self, changed: list[str]) -> None:
        resumes = [*self.manifest().get("resumes", []), {"at": _now(), "changed": changed}]
        self.update_manifest(resumes=resumes, status="running", **provenance())


def holds_run(path: Path) -> bool:
    """Whether a run was started in this folder."""
    return (path / RECIPE_NAME).is_file()


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, defaults written out: a later mull may have others."""
    values: dict[str, Any] = recipe.model_dump(mode="json", exclude_none=True)
    return values


def recipe_text(recipe: Recipe) -> str:
    """A recipe as TOML that reads back to the same recipe."""
    return tomli_w.dumps(recipe_values(recipe))


def read_recipe(path: Path) -> dict[str, Any]:
    """The values in a run folder's recipe. Raises RecipeError."""
    try:
        return tomllib.loads((path / RECIPE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path / RECIPE_NAME}: cannot be read ({reason(error)})") from None


def read_manifest(path: Path) -> dict[str, Any]:
    """A run folder's manifest; empty, with a warning, where it is damaged."""
    try:
        manifest = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("%s is damaged (%s)", path / MANIFEST_NAME, reason(error))
        return {}
    return manifest


def comparable(path: Path) -> list[dict[str, Any]]:
    """The records of a log without their times: equal for equal runs, resumed or not."""
    return [
        {key: value for key, value in record.items() if key != "time"}
        for record in read_json_lines(path)
    ]


def _is_ours(name: str) -> bool:
    return name in (LOCK_NAME, RECIPE_NAME + ".new")  # a kill before the recipe was written


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(path.name + ".new")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise TrainError(
            f"{path}: could not be written ({reason(error)}); free some space and resume"
        ) from error


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
