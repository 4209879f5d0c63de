"""What a report tells, gathered from a run folder: whole, still running or broken off."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mull.errors import RecipeError
from mull.train.figures import number
from mull.train.json_lines import read_json_lines
from mull.train.run_folder import (
    ANSWERS,
    METRICS_NAME,
    RECIPE_NAME,
    SAMPLES_NAME,
    read_manifest,
    read_recipe,
)

_MOST_QUESTIONS = 5000  # remembered while looking for those that several stages answered
_TIMES = ("seconds", "repeated_seconds", "joules", "kwh", "dollars")
_COUNTS = ("tokens_trained", "tokens_sampled", "flops")


@dataclass
class Curve:
    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))


@dataclass
class StageData:
    """One stage: its curves by name, and what it spent as far as known. best: the record of which
    state is its result. is_half: the answers of a distill stage, whose bill is that stage's."""

    name: str
    kind: str = ""
    last_step: int = 0
    curves: dict[str, Curve] = field(default_factory=dict)
    seconds: float = 0.0  # of its steps
    bill: dict[str, float] = field(default_factory=dict)
    best: Mapping[str, Any] = field(default_factory=dict)
    is_half: bool = False

    def curve(self, name: str) -> Curve | None:
        return self.curves.get(name)


@dataclass
class RunData:
    """answers: question -> stage -> the last sample of that stage."""

    name: str
    about: str
    recipe_text: str
    manifest: dict[str, Any]
    stages: dict[str, StageData]
    evals: list[dict[str, Any]]
    answers: dict[str, dict[str, dict[str, Any]]]

    def by_eval(self) -> list[RunData]:
        """The same run with the figures of one eval stage at a time; none where none were taken."""
        parts: dict[str, list[dict[str, Any]]] = {}
        for record in self.evals:
            parts.setdefault(str(record.get("by", "")), []).append(record)
        return [replace(self, evals=records) for records in parts.values()]

    def order(self, names: Iterable[str]) -> list[str]:
        """Stage names in the recipe's order; unknown ones (the base model) first."""
        place = {name: at for at, name in enumerate(self.stages)}
        return sorted(dict.fromkeys(names), key=lambda name: place.get(name, -1))


def read_run(folder: Path) -> RunData:
    """Read everything; what is missing or damaged is left out."""
    try:
        recipe = read_recipe(folder)
    except RecipeError:
        recipe = {}
    manifest = read_manifest(folder)
    stages: dict[str, StageData] = {}
    listed = recipe.get("stages")
    for table in map(_table, listed if isinstance(listed, list) else []):
        name = str(table.get("name", ""))
        stages[name] = StageData(name, str(table.get("kind", "")))
    evals: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in read_json_lines(folder / METRICS_NAME):
        _take(record, stages, evals)
    _take_bill(manifest.get("bill"), stages)
    file = folder / RECIPE_NAME
    return RunData(
        name=str(recipe.get("name") or manifest.get("name") or folder.resolve().name),
        about=str(recipe.get("about", "")),
        recipe_text=file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "",
        manifest=manifest,
        stages=stages,
        evals=list(evals.values()),
        answers=_answers(folder / SAMPLES_NAME),
    )


def _take(
    record: Mapping[str, Any],
    stages: dict[str, StageData],
    evals: dict[tuple[str, ...], dict[str, Any]],
) -> None:
    name, kind = str(record.get("stage", "")), record.get("kind")
    if kind == "eval":
        if number(record.get("pass_at_1")) is not None:
            key = tuple(str(record.get(part)) for part in ("by", "stage", "task", "family", "ood"))
            evals[key] = dict(record)  # asked twice by one: the later figure holds
        return
    if kind not in ("step", "best", "stage_end"):
        return
    if name not in stages:
        stages[name] = StageData(name, is_half=name.removesuffix(ANSWERS) in stages)
    stage = stages[name]
    stage.kind = stage.kind or str(record.get("stage_kind", ""))
    step = number(record.get("step"))
    if kind == "step" and step is not None:
        _take_step(record, stage, step)
    elif kind == "best":
        stage.best = record
    elif kind == "stage_end":
        figures = {**_table(record), **_table(record.get("time"))}
        stage.bill = {key: n for key in (*_TIMES, *_COUNTS) if (n := number(figures.get(key)))}


def _take_step(record: Mapping[str, Any], stage: StageData, step: float) -> None:
    stage.last_step = int(step)
    stage.seconds += number(_table(record.get("time")).get("seconds")) or 0.0
    for key, raw in _table(record.get("values")).items():
        value = number(raw)
        if value is not None:
            curve = stage.curves.setdefault(str(key), Curve())
            curve.steps.append(step)
            curve.values.append(value)


def _take_bill(bill: Any, stages: dict[str, StageData]) -> None:
    """The manifest's bill is newer than the records of stages that have not ended."""
    for name, line in _table(_table(bill).get("stages")).items():
        stage = stages.setdefault(name, StageData(name))
        for key in (*_TIMES, *_COUNTS):
            if (value := number(_table(line).get(key))) is not None:
                stage.bill[key] = max(value, stage.bill.get(key, 0.0))
    for stage in stages.values():
        if not stage.bill and stage.seconds and not stage.is_half:
            stage.bill = {"seconds": stage.seconds}


def _answers(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    answers: dict[str, dict[str, dict[str, Any]]] = {}
    for sample in read_json_lines(path):
        question = sample.get("question")
        text = question if isinstance(question, str) else json.dumps(question)
        if text in answers or len(answers) < _MOST_QUESTIONS:
            answers.setdefault(text, {})[str(sample.get("stage", ""))] = sample
    return answers


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
