"""A stage that validates ends with the state that did best, whatever came after it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from train_run_parts import fingerprint, on_one_thread

from mull.train.recipe import Recipe
from mull.train.recipe_file import load_recipe
from mull.train.run import run_recipe
from mull.train.run_folder import comparable
from mull.train.session import Keeper, StopAsked

FRESH = "{ depth = 2, context = 64, experts = false, mtp = false }"
STEPS = 22


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    yield from on_one_thread()


def recipe_of(folder: Path, model: str = FRESH, *, steps: int = STEPS, every: int = 3) -> Recipe:
    """Chats whose answers follow no rule: they can be learnt by heart, and nothing else."""
    lines = []
    for index in range(24):
        said = [
            {"role": "user", "content": f"{index}?"},
            {"role": "assistant", "content": f"{index * index * 7919 % 99991}"},
        ]
        lines.append(json.dumps({"messages": said}))
    folder.mkdir(exist_ok=True)
    (folder / "chats.jsonl").write_text("\n".join(lines))
    (folder / "recipe.toml").write_text(
        f"name = 'heart'\nmodel = {model}\ntokenizer.vocabulary = 290\n"
        f"[[stages]]\nname = 'heart'\nkind = 'sft'\nsteps = {steps}\nvalidate_every = {every}\n"
        "batch_tokens = 512\nmax_length = 64\ncheckpoint_every = 2\n"
        "data = [{ chat = ['chats.jsonl'] }]\n"
        "optimiser = { name = 'muon', learning_rate = 0.03, warmup = 2 }\n"
    )
    return load_recipe(folder / "recipe.toml")


def records(out: Path, kind: str) -> list[dict[str, Any]]:
    return [each for each in comparable(out / "metrics.jsonl") if each["kind"] == kind]


def validated(out: Path) -> dict[int, float]:
    """Loss by step."""
    return {
        each["step"]: each["values"]["validation_loss"]
        for each in records(out, "step")
        if "validation_loss" in each["values"]
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    run_recipe(recipe_of(folder, steps=6, every=0), folder / "out")
    return f"{{ base = '{folder / 'out' / 'final'}', lora = {{ rank = 8 }} }}"


@pytest.mark.parametrize("has_adapters", [False, True])
def test_a_model_that_learns_by_heart_ends_with_its_best_state(
    base: str, tmp_path: Path, has_adapters: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = base if has_adapters else FRESH, tmp_path / "out"
    assert run_recipe(recipe_of(tmp_path, model), out).status == "done"
    losses = validated(out)
    assert list(losses) == [*range(3, STEPS, 3), STEPS]
    best = min(losses, key=lambda step: losses[step])
    assert best < STEPS, losses
    said = f"its result is step {best} with a validation loss of {losses[best]:.4g}; at the last"
    assert said in capsys.readouterr().err
    (record,) = records(out, "best")
    assert record["best_step"] == best
    assert record["last_step"] == STEPS
    assert record["validation_loss"] == losses[best] < record["last_validation_loss"]
    assert f"its result is step {best}:" in (out / "report.html").read_text()
    # A run that stopped learning there has the same model.
    shorter = tmp_path / "shorter"
    run_recipe(recipe_of(shorter, model, steps=best), shorter / "out")
    for name in ("stages/heart", "final"):
        found, wanted = (
            load_file(each / name / "model.safetensors") for each in (out, shorter / "out")
        )
        assert found.keys() == wanted.keys()
        assert all(found[tensor].equal(wanted[tensor]) for tensor in found)


@pytest.mark.parametrize("step", [9, 20, STEPS])
@pytest.mark.parametrize("reason", ["interrupted", "budget"])
def test_stopped_anywhere_and_gone_on_with_it_ends_the_same(
    tmp_path: Path, step: int, reason: str
) -> None:
    recipe, out, stepped = recipe_of(tmp_path), tmp_path / "out", Keeper.stepped

    def stop(self: Keeper, number: int, scores: dict[str, float] | None = None) -> None:
        stepped(self, number, scores)
        if number == step:
            raise StopAsked(reason)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "stepped", stop)
        assert run_recipe(recipe, out).status == reason
    if reason == "budget":  # its result is the best so far, the last state among them
        losses = validated(out)
        assert max(losses) == step
        (record,) = records(out, "best")
        assert losses[record["best_step"]] == min(losses.values())
        whole = fingerprint(out)["weights"]["final/model.safetensors"]
        shorter = tmp_path / "shorter"
        run_recipe(recipe_of(shorter, steps=record["best_step"]), shorter / "out")
        assert fingerprint(shorter / "out")["weights"]["final/model.safetensors"] == whole
    assert run_recipe(recipe, out, resume=True).status == "done"
    run_recipe(recipe, tmp_path / "whole")
    assert fingerprint(out) == fingerprint(tmp_path / "whole")


def test_a_stage_that_its_own_budget_ends_takes_its_best_state(tmp_path: Path) -> None:
    recipe, out = recipe_of(tmp_path), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "is_spent", property(lambda keeper: keeper.step >= STEPS - 2))
        assert run_recipe(recipe, out).status == "done"
    losses = validated(out)
    assert max(losses) == STEPS - 2
    (record,) = records(out, "best")
    assert losses[record["best_step"]] == min(losses.values())
    assert record["best_step"] < STEPS - 2
