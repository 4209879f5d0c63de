"""The recipes mull comes with: found by name, from anywhere, and each of them can be planned."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from mull_command import run_mull

from mull.errors import RecipeError, TaskError
from mull.train.check import check
from mull.train.peak import Peak
from mull.train.plan import Memory, describe, model_config, plan
from mull.train.recipe_file import load_recipe
from mull.train.recipe_parts import ModelSpec
from mull.train.recipe_stages import Evaluate
from mull.train.shipped import find_recipe, read_recipe, shipped_recipes
from mull.train.stages.evaluate import evaluated

ROOT = Path(__file__).parent.parent
PEAK = Peak(stated=200.0)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_can_be_planned(name: str) -> None:
    recipe = read_recipe(name)
    found = plan(recipe, PEAK)
    assert 0 < found.active <= found.parameters
    assert found.memory.total > 0
    assert all(cost.seconds > 0 for cost in found.stages)
    text = describe(found)
    for stage in recipe.stages:
        assert stage.name in text
    assert all(word in text for word in ("active per token", "FLOPs", "memory:", "time:", "bill:"))


def test_a_module_that_learns_alone_costs_what_it_takes_and_is_not_asked_questions() -> None:
    recipe = read_recipe("nano")
    (scores,) = (stage for stage in recipe.stages if isinstance(stage, Evaluate))
    assert evaluated(recipe, scores) == ["base", "zero", "dev1", "dev2", "dev3", "r1"]
    more = [f"stages.drafts.mtp_passes={passes}" for passes in (1, 8)]
    once, often = (plan(read_recipe("nano", [change]), PEAK).stages[-2] for change in more)
    assert often.learn_flops > 2 * once.learn_flops
    (base,) = (cost for cost in plan(recipe, PEAK).stages if cost.name == "base")
    # Forward once, and one layer of three learnt, against all three learnt and no module.
    assert once.learn_flops / once.tokens < base.learn_flops / base.tokens
    with pytest.raises(RecipeError, match="validate_every"):
        read_recipe("nano", ["stages.drafts.validate_every=10"])


def test_r1_is_planned_though_nobody_has_it_here() -> None:
    done = run_mull("train", "r1", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "r1: 682.6 G parameters, 38.2 G active per token" in done.stdout
    assert "on the machine that the recipe states" in done.stdout


def test_a_name_and_a_path_of_a_clone_are_the_same_recipe_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("smoke") == find_recipe("recipes/smoke.toml") == find_recipe("smoke.toml")
    with pytest.raises(RecipeError, match="did you mean 'smoke'"):
        find_recipe("recipes/smoked.toml")


def test_the_wheel_carries_the_recipes_from_their_one_place() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = settings["tool"]["scikit-build"]["wheel"]["packages"]
    assert packages["mull/recipes"] == "recipes"
    assert not (ROOT / "mull" / "recipes").exists()


def test_a_file_of_problems_and_a_base_are_a_recipe(tmp_path: Path) -> None:
    with_steps = tmp_path / "my task.py"
    with_steps.write_text("def make_problem(rng):\n    return f'q{rng.random()}', 'a', 'b'\n")
    recipe = read_recipe(str(with_steps), ["seed=9"], base="some/model")
    assert (recipe.name, recipe.seed, recipe.model.base) == ("my-task", 9, "some/model")
    assert recipe.tasks["own"].file == with_steps
    assert recipe.stages[0].name == "cold-start"
    without = tmp_path / "asked.jsonl"
    without.write_text("".join(f'{{"question": "{n}?", "answer": "{n}"}}\n' for n in range(60)))
    assert [stage.kind for stage in read_recipe(str(without)).stages][:2] == ["sft", "reject"]


def test_a_file_without_problems_to_train_on_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(TaskError, match="holds no problems"):
        read_recipe(str(empty))
    with pytest.raises(TaskError, match="no such file"):
        read_recipe(str(tmp_path / "absent.py"))


def test_a_base_for_a_recipe_from_scratch_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"either base .* or depth"):
        read_recipe("smoke", base="smollm2-135m")


def test_adapters_and_narrow_numbers_make_a_plan_smaller() -> None:
    path = find_recipe("smol")
    small = plan(load_recipe(path), PEAK)
    wide = plan(load_recipe(path, ["stages.cold-start.precision=fp32"]), PEAK)
    assert small.memory.optimiser < small.memory.weights
    assert small.memory.activations <= wide.memory.activations
    whole = plan(load_recipe(path, ["model.lora={rank=1, layers=['q_proj']}"]), PEAK)
    assert whole.memory.optimiser < small.memory.optimiser


def test_a_reference_and_a_teacher_take_memory_of_their_own() -> None:
    def memory(*changes: str) -> Memory:
        return plan(read_recipe("smoke", changes), PEAK).memory

    alone = memory("stages.reasoning.kl=0")
    assert alone.standing == 0
    config = model_config(recipe := read_recipe("smoke"), recipe.model)
    beside = memory()
    assert beside.standing == 4 * config.parameter_count(mtp=False)[0]
    assert beside.total == alone.total + beside.standing
    on_policy = ("stages.reasoning.kl=0", "stages.student.form=on_policy")
    whole = 4 * config.parameter_count(mtp=True)[0]
    for teacher in ("r1", "model"):
        assert memory(*on_policy, f"stages.student.teacher={teacher}").standing == whole
    nano = model_config(recipe, ModelSpec(base="nano"))
    found = memory(*on_policy, "stages.student.teacher=nano").standing
    assert found == 4 * nano.parameter_count(mtp=True)[0]


def test_a_model_that_nobody_knows_cannot_be_planned() -> None:
    recipe = load_recipe(find_recipe("smol"), ["model.base=nobodys/model"])
    with pytest.raises(Exception, match="nobodys/model") as caught:
        plan(recipe, PEAK)
    assert "\n" not in str(caught.value)


def test_a_fresh_students_context_bounds_its_answers() -> None:
    recipe = read_recipe("smoke", ["stages.student.student={depth=1, context=64}"])
    with pytest.raises(RecipeError, match="student: max_length is 256"):
        check(recipe)
    assert model_config(recipe, recipe.model).max_position_embeddings == 256
