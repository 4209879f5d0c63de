"""Going on with a run that was stopped where little, or nothing, had been reached yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from train_run_parts import fingerprint, on_one_thread, tiny

from mull.train.recipe import Recipe
from mull.train.rollout import Sampler
from mull.train.run import run_recipe
from mull.train.run_folder import comparable
from mull.train.session import Keeper, StopAsked
from mull.train.stages.collect import LocalTeacher
from mull.train.state import Checkpoints

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


def stop_sampling(patch: pytest.MonkeyPatch, chunk: int) -> None:
    """As if a signal came while that chunk of answers is sampled."""
    answers, asked = Sampler.answers, [0]

    def stopped(self: Sampler, *values: object, **options: object) -> object:
        asked[0] += 1
        if asked[0] == chunk:
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
