"""Going on with a run that was stopped where little, or nothing, had been reached yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from train_run_parts import fingerprint, on_one_thread, tiny

from mull.errors import RecipeError, TrainError
from mull.train.bill import Budget
from mull.train.metrics import Metrics
from mull.train.recipe import Recipe
from mull.train.rollout import Sampler
from mull.train.run import run_recipe
from mull.train.run_folder import ANSWERS, RunFolder, comparable, read_manifest
from mull.train.session import Keeper, StopAsked
from mull.train.stages.collect import LocalTeacher
from mull.train.stages.learn import learn
from mull.train.state import Checkpoints
from mull.train.trainee import Trainee

# One step of pretraining: no answer is right, and without a reference policy nothing is learnt.
UNTAUGHT = ("stages.base.steps=1", "stages.base.validate_every=0", "stages.zero.kl=0")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    yield from on_one_thread()


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers now and then."""
    folder = tmp_path_factory.mktemp("taught")
    run_recipe(stages_of(folder, ["base"]), folder / "out")
    return folder / "out" / "final"


def stages_of(folder: Path, names: list[str], *changes: str) -> Recipe:
    """The tiny recipe with those of its stages alone."""
    recipe = tiny(folder, *changes)
    kept = tuple(stage for stage in recipe.stages if stage.name in names)
    return recipe.model_copy(update={"stages": kept})


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """As if a signal came during that step."""
    whole = Keeper.stepped

    def stepped(self: Keeper, number: int, scores: dict[str, float] | None = None) -> None:
        whole(self, number, scores)
        if number == step:
            raise StopAsked("interrupted")

    patch.setattr(Keeper, "stepped", stepped)


def stop_sampling(patch: pytest.MonkeyPatch, chunk: int, *, seconds: float = 0.0) -> None:
    """As if a signal came when that chunk of answers was sampled for so long."""
    answers, asked = Sampler.answers, [0]

    def stopped(self: Sampler, *values: object, **options: object) -> object:
        asked[0] += 1
        if asked[0] == chunk:
            time.sleep(seconds)
            raise StopAsked("interrupted")
        return answers(self, *values, **options)  # type: ignore[arg-type]

    patch.setattr(Sampler, "answers", stopped)


def test_a_run_in_which_nothing_taught_anything_yet_goes_on(tmp_path: Path) -> None:
    recipe = stages_of(tmp_path, ["base", "zero"], *UNTAUGHT, "stages.zero.steps=4")
    out, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        assert run_recipe(recipe, out).status == "interrupted"
    records = [each for each in comparable(out / "metrics.jsonl") if each["kind"] == "step"]
    assert [each["values"].get("dead_groups") for each in records] == [None, 1.0, 1.0]
    saved = Checkpoints(out / "checkpoints").latest()
    assert saved is not None
    assert not any(name.startswith("optimiser/") for name in saved.tensors)
    assert run_recipe(recipe, out, resume=True).status == "done"
    run_recipe(recipe, whole)
    assert fingerprint(out) == fingerprint(whole)


@pytest.mark.parametrize("chunk", [1, 2])
def test_sampling_stopped_in_any_chunk_goes_on(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(LocalTeacher, "at_once", 24)
    base = f"model={{base='{taught}'}}"
    recipe = stages_of(tmp_path, ["kept"], base, "stages.kept.start=model")
    out, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patch:
        stop_sampling(patch, chunk)
        assert run_recipe(recipe, out).status == "interrupted"
    saved = Checkpoints(out / "checkpoints").latest()
    assert saved is not None
    assert saved.position == {"stage": "kept", "step": 12 * (chunk - 1)}
    assert run_recipe(recipe, out, resume=True).status == "done"
    run_recipe(recipe, whole)
    kept = [(path / "kept" / "kept.jsonl").read_bytes() for path in (out, whole)]
    assert kept[0] == kept[1]
    assert fingerprint(out) == fingerprint(whole)


def test_a_teacher_stopped_when_all_is_answered_goes_on(taught: Path, tmp_path: Path) -> None:
    changes = [f"model={{base='{taught}'}}", "stages.student.teacher=model"]
    recipe = stages_of(tmp_path, ["student"], *changes)
    out, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mull.train.stages.distill.learn", _stop)
        for resume in (False, True):  # the second time the answers are complete from the first on
            assert run_recipe(recipe, out, resume=resume).status == "interrupted"
    assert run_recipe(recipe, out, resume=True).status == "done"
    run_recipe(recipe, whole)
    assert fingerprint(out) == fingerprint(whole)


def _stop(*_: object) -> None:
    raise StopAsked("interrupted")


def test_time_that_nothing_came_of_stays_on_the_bill(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalTeacher, "at_once", 24)
    base = f"model={{base='{taught}'}}"
    recipe, out = stages_of(tmp_path, ["kept"], base, "stages.kept.start=model"), tmp_path / "out"
    for chunk in (2, 1):  # the second time it is the same one, of which nothing was kept
        with pytest.MonkeyPatch.context() as patch:
            stop_sampling(patch, chunk, seconds=0.4)
            run_recipe(recipe, out, resume=chunk == 1)
    run_recipe(recipe, out, resume=True)
    line = read_manifest(out)["bill"]["stages"]["kept"]
    assert line["repeated_seconds"] >= 0.4
    assert line["seconds"] + line["repeated_seconds"] >= 0.8


def test_lost_answers_are_on_the_bill_of_their_stage(tmp_path: Path) -> None:
    recipe, out = tiny(tmp_path), tmp_path / "out"
    with RunFolder.start(out, recipe) as folder:
        metrics = Metrics(folder.metrics, folder.samples)
        metrics.step("student" + ANSWERS, "distill", 1, {}, {"seconds": 2.0})
        folder.note_bill({})
        metrics.step("student" + ANSWERS, "distill", 2, {}, {"seconds": 3.0})
        assert folder.rewind({}).seconds == {"student": 3.0}  # the first is on the manifest's bill


def test_a_student_that_learnt_nothing_is_no_result(taught: Path, tmp_path: Path) -> None:
    changes = [f"model={{base='{taught}'}}", "stages.student.teacher=model"]
    changes += ["stages.student.start=model", "stages.student.budget=3s"]
    recipe, out = stages_of(tmp_path, ["student"], *changes), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Budget, "share", lambda *_: 0.49)
        patch.setattr("mull.train.stages.distill.learn", _spend_all(patch))
        with pytest.raises(TrainError, match="student: its budget was spent before the first"):
            run_recipe(recipe, out)
    assert (out / "kept" / "student.jsonl").read_text()
    assert not (out / "stages" / "student").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Budget, "share", lambda *_: 0.5)
        with pytest.raises(TrainError, match="student: its budget was spent before any answer"):
            run_recipe(recipe, tmp_path / "another")


def test_an_evaluation_ends_with_its_budget(taught: Path, tmp_path: Path) -> None:
    changes = [f"model={{base='{taught}'}}", "stages.scores.stages=['model', 'model', 'model']"]
    recipe = stages_of(tmp_path, ["scores"], *changes, "stages.scores.budget=3s")
    with pytest.MonkeyPatch.context() as patch:
        shares = iter([0.0, 0.9, 1.0])
        patch.setattr(Budget, "share", lambda *_: next(shares))
        assert run_recipe(recipe, tmp_path / "out").status == "done"
    found = comparable(tmp_path / "out" / "metrics.jsonl")
    assert [each["kind"] for each in found] == ["eval", "eval", "stage_end"]
    assert {(each["by"], each["thinking"]) for each in found[:2]} == {("scores", "on")}


def _spend_all(patch: pytest.MonkeyPatch) -> Callable[..., Trainee]:
    def spent(*values: Any) -> Trainee:
        patch.setattr(Budget, "share", lambda *_: 1.0)
        return learn(*values)

    return spent


def test_an_error_names_the_stage_it_came_up_in(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    data = '[{text=["empty.txt"]}]'
    with pytest.raises(RecipeError, match=r"^stage base: .*empty.txt: holds no text"):
        run_recipe(tiny(tmp_path, f"stages.base.data={data}"), tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mull.train.models.load", _no_space)
        recipe = stages_of(tmp_path, ["base", "zero"], *UNTAUGHT)
        with pytest.raises(TrainError, match=r"^stage zero: no space"):
            run_recipe(recipe, tmp_path / "another")
    assert read_manifest(tmp_path / "another")["error"].startswith("stage zero: no space")


def _no_space(*_: object) -> None:
    raise TrainError("no space")
