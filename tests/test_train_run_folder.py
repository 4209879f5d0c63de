"""The run folder: what it holds, resuming it, what a changed recipe says."""

from __future__ import annotations

import copy
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.errors import TrainError
from mull.train.json_lines import JsonLines, read_json_lines
from mull.train.metrics import Metrics
from mull.train.recipe import Recipe
from mull.train.recipe_file import load_recipe
from mull.train.run_folder import RunFolder, changed_keys, comparable, recipe_values

FULL = """
import resource, sys
from pathlib import Path
from mull.errors import TrainError
from mull.train.json_lines import JsonLines
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
log = JsonLines(Path(sys.argv[1]))
try:
    while True:
        log.append({"text": "x" * 90})
except TrainError as error:
    print(error)
"""


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "model": {"depth": 2},
        "tasks": {"sums": {"families": {"chain": {"levels": [1, 4]}}}},
        "stages": [
            {"name": "base", "kind": "pretrain", "steps": 9, "data": [{"task": "sums"}]},
            {"name": "rl", "kind": "rl", "task": "sums", "steps": 5},
        ],
    }
    return Recipe.model_validate({**values, **changes})


def train(run: RunFolder, first: int, last: int) -> None:
    metrics = Metrics(run.metrics, run.samples, run.tensorboard)
    for step in range(first, last + 1):
        metrics.step("rl", "rl", step, {"reward": step / 7, "loss": float("nan")}, {"seconds": 2.0})
        metrics.sample(
            {"stage": "rl", "step": step, "question": "1+1", "thinking": "\x1b", "answer": "é",
             "verdict": "correct", "reward": 1.0, "tokens": 4}
        )  # fmt: skip
        if step % 4 == 0:
            position = {"stage": "rl", "step": step}
            run.checkpoints.save(position, {"w": torch.ones(1)}, {"marks": run.marks()})
    metrics.close()


def test_a_run_folder_says_how_it_was_made(tmp_path: Path) -> None:
    with RunFolder.start(tmp_path / "run", recipe(about='says "hi"\nand \\ more')) as run:
        run.update_manifest(data={"sha256": "abc"}, status="done")
        manifest = run.manifest()
    assert manifest["seed"] == 3
    assert manifest["data"] == {"sha256": "abc"}
    assert manifest["status"] == "done"
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["hardware"]["cores"] >= 1
    assert "commit" in manifest
    again = load_recipe(tmp_path / "run" / "recipe.toml")
    assert again == recipe(about='says "hi"\nand \\ more')


def test_a_resumed_run_leaves_the_files_of_an_uninterrupted_one(tmp_path: Path) -> None:
    with RunFolder.start(tmp_path / "whole", recipe()) as run:
        train(run, 1, 10)
    with RunFolder.start(tmp_path / "killed", recipe()) as run:
        train(run, 1, 6)
    with (tmp_path / "killed" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "st')  # a kill in the middle of a record
    with RunFolder.resume(tmp_path / "killed") as run:
        found = run.checkpoints.latest()
        assert found is not None
        lost = run.rewind(found.facts["marks"])
        assert lost.records == {"metrics.jsonl": 2, "samples.jsonl": 2}
        assert lost.seconds == {"rl": 4.0}
        train(run, found.position["step"] + 1, 10)
        assert len(run.manifest()["resumes"]) == 1
    for name in ("metrics.jsonl", "samples.jsonl"):
        whole, killed = (comparable(tmp_path / kind / name) for kind in ("whole", "killed"))
        assert whole == killed
        assert len(whole) == 10
    assert whole[0]["thinking"] == "\x1b"


def test_a_run_without_a_checkpoint_resumes_from_nothing(tmp_path: Path) -> None:
    with RunFolder.start(tmp_path, recipe()) as run:
        train(run, 1, 2)
    with RunFolder.resume(tmp_path) as run:
        assert run.checkpoints.latest() is None
        run.rewind({})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_tensorboard_files_tell_readers_to_forget_what_was_repeated(tmp_path: Path) -> None:
    for first, last in ((1, 3), (2, 3)):
        log, samples = JsonLines(tmp_path / "m"), JsonLines(tmp_path / "s")
        metrics = Metrics(log, samples, tmp_path / "tensorboard")
        for step in range(first, last + 1):
            metrics.step("rl", "rl", step, {"reward": step})
        metrics.close()
    from tensorboardX.proto.event_pb2 import Event

    files = sorted((tmp_path / "tensorboard" / "rl").iterdir(), key=lambda path: path.suffix)
    assert len(files) == 2
    events = [Event.FromString(data) for data in tf_records(files[1].read_bytes())]
    assert events[1].session_log.status == 1
    assert [event.step for event in events[1:]] == [2, 2, 3]
    assert events[2].summary.value[0].simple_value == 2.0


def tf_records(data: bytes) -> list[bytes]:
    records = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        records.append(data[12 : 12 + length])
        data = data[16 + length :]
    return records


def test_a_folder_with_a_run_or_with_other_things_is_not_started_in(tmp_path: Path) -> None:
    RunFolder.start(tmp_path / "run", recipe()).close()
    with pytest.raises(TrainError, match="holds a run already"):
        RunFolder.start(tmp_path / "run", recipe())
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(TrainError, match="not empty"):
        RunFolder.start(tmp_path, recipe())
    with pytest.raises(TrainError, match="holds no run"):
        RunFolder.resume(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="cannot be written"):
        RunFolder.start(tmp_path / "file" / "run", recipe())


def test_an_open_run_cannot_be_opened_again(tmp_path: Path) -> None:
    with (
        RunFolder.start(tmp_path, recipe()),
        pytest.raises(TrainError, match="another process is training here"),
    ):
        RunFolder.resume(tmp_path)
    RunFolder.resume(tmp_path).close()


def test_a_changed_recipe_is_named_and_refused_unless_told(tmp_path: Path) -> None:
    RunFolder.start(tmp_path, recipe()).close()
    other = recipe(seed=4, budget="5m")
    with pytest.raises(TrainError, match="since the run began: seed;"):
        RunFolder.resume(tmp_path, other)
    RunFolder.resume(tmp_path, recipe()).close()
    with RunFolder.resume(tmp_path, other, allow_changes=True) as run:
        assert run.manifest()["resumes"][-1]["changed"] == ["budget", "seed"]
    assert load_recipe(tmp_path / "recipe.toml").seed == 4


def test_a_budget_or_price_may_change_without_asking(tmp_path: Path) -> None:
    RunFolder.start(tmp_path, recipe()).close()
    other = recipe(budget="5m", machine={"watts": 200})
    RunFolder.resume(tmp_path, other).close()
    assert load_recipe(tmp_path / "recipe.toml").machine.watts == 200


def test_a_full_disk_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout
    lines = path.read_text().splitlines()
    assert len(lines) == 9
    assert all(json.loads(line) for line in lines)


def test_broken_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n\xff\xfe\n[1]\n{"b"\n{"c": 2}')
    assert list(read_json_lines(path)) == [{"a": 1}, {"c": 2}]
    assert list(read_json_lines(tmp_path / "none")) == []


def test_changed_keys_speak_of_stages_by_name() -> None:
    old = recipe_values(recipe())
    new = copy.deepcopy(old)
    new["stages"][1]["optimiser"]["learning_rate"] = 0.5
    new["stages"].append({"name": "judge", "kind": "eval"})
    del new["model"]["depth"]
    assert changed_keys(old, new) == [
        "model.depth", "stages.judge", "stages.rl.optimiser.learning_rate",
    ]  # fmt: skip
    swapped = {**old, "stages": old["stages"][::-1]}
    assert changed_keys(old, swapped) == ["stages"]


keys = st.text("abc", min_size=1, max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
tables = st.dictionaries(keys, values, max_size=5)


@given(tables, tables)
@settings(max_examples=100, deadline=None)
def test_changed_keys_are_none_for_equal_tables_and_the_same_both_ways(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert changed_keys(old, copy.deepcopy(old)) == []
    found = changed_keys(old, new)
    assert found == sorted(set(changed_keys(new, old)))
    tops = {key.partition(".")[0] for key in found}
    text = json.dumps
    for key in {*old, *new}:
        is_same = key in old and key in new and text(old[key]) == text(new[key])
        assert is_same or key in tops


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_one_changed_value_is_one_changed_key(data: st.DataObject) -> None:
    old = recipe_values(recipe())
    new = copy.deepcopy(old)
    place: Any = new
    names: list[str] = []
    while isinstance(place, dict) and place:
        holder, key = place, data.draw(st.sampled_from(sorted(place)))
        if key == "name":  # a stage with another name is another stage
            return
        place = place[key]
        names.append(key)
        if key == "stages":
            place = data.draw(st.sampled_from(place))
            names.append(place["name"])
    holder[key] = ["something else"]
    assert changed_keys(old, new) == [".".join(names)]
