"""The models of a run: what they begin with, and what their folders hold."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from train_parts import DEEPSEEK, fresh_model
from train_run_parts import tiny, write_recipe

from mull import weights
from mull.errors import RecipeError
from mull.train.check import check
from mull.train.data.tokenizer import train_tokenizer, write_tokenizer
from mull.train.lora import adapters
from mull.train.models import Models
from mull.train.peak import Peak
from mull.train.plan import plan
from mull.train.problems import Tasks
from mull.train.recipe import Recipe
from mull.train.recipe_file import load_recipe
from mull.train.recipe_parts import TokenizerSpec
from mull.train.run import run_recipe


def a_base(folder: Path, words: str = "one two three") -> Path:
    """A small model in a folder, with the tokenizer of 270 tokens that fits these words."""
    spec = TokenizerSpec(vocabulary=270)
    model = fresh_model({**DEEPSEEK, "vocab_size": 270, "max_position_embeddings": 64})
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    write_tokenizer(train_tokenizer([words] * 9, spec), tokenizer)
    weights.save_folder(model, folder, tokenizer_files=tokenizer)
    return folder


def test_a_sentencepiece_file_beside_the_tokenizer_goes_along_to_the_byte(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    pieces = b"\n\x0e\n\x05<unk>\x15\x00\x00\xff\xfe\x80"
    (base / "tokenizer.model").write_bytes(pieces)
    for change in (f'model={{base="{base}"}}', f'tokenizer.like="{base}"'):
        recipe = tiny(tmp_path, change)
        models = Models(recipe, Tasks(recipe), tmp_path / change.partition("=")[0])
        opened = models.begin(recipe.stages[0])
        models.save("base", opened.model, opened.tokenizer)
        saved = models.path("base")
        assert (saved / "tokenizer.model").read_bytes() == pieces
        assert (saved / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


AFTER_A_STUDENT = """
name = "after"
model = {model}
tokenizer = {{ vocabulary = 280 }}
tasks.parity.file = "parity.py"

[[stages]]
name = "taught"
kind = "distill"
teacher = "model"
task = "parity"
steps = 1
max_length = 64
sampling = {{ max_tokens = 16 }}
student = {student}

[[stages]]
name = "after"
{stage}
"""
RL = 'kind = "rl"\ntask = "parity"\nsteps = 1\nsampling = { max_tokens = 512 }'
SFT = 'kind = "sft"\ndata = [{ task = "parity" }]\nsteps = 1\nmax_length = 512'
EVAL = 'kind = "eval"\ntasks = ["parity"]\nstages = ["model", "taught"]\n'


def after_a_student(folder: Path, model: str, student: str, stage: str) -> Recipe:
    text = AFTER_A_STUDENT.format(model=model, student=student, stage=stage)
    return load_recipe(write_recipe(folder, text))


@pytest.mark.parametrize(
    ("model", "student", "stage", "said"),
    [
        (256, 1024, SFT, None),
        (1024, 256, SFT, r"after: max_length is 512.* or raise student.context"),
        (256, 1024, RL, None),
        (1024, 256, RL, r"after: sampling.max_tokens is 512.* raise student.context"),
        (1024, 1024, EVAL + "sampling = { max_tokens = 512 }", None),
        (1024, 256, EVAL + "sampling = { max_tokens = 512 }", "raise student.context"),
        (256, 1024, EVAL + "sampling = { max_tokens = 512 }", "raise model.context"),
    ],
)
def test_a_context_is_of_the_model_that_a_stage_works_on(
    tmp_path: Path, model: int, student: int, stage: str, said: str | None
) -> None:
    specs = (f"{{ depth = {depth}, context = {c} }}" for depth, c in ((2, model), (1, student)))
    recipe = after_a_student(tmp_path, *specs, stage)
    with nullcontext() if said is None else pytest.raises(RecipeError, match=said):
        check(recipe)


def test_answers_to_learn_from_must_fit_the_teacher(tmp_path: Path) -> None:
    student = "{ depth = 1, context = 1024 }"
    recipe = after_a_student(tmp_path, "{ depth = 2, context = 16 }", student, SFT)
    with pytest.raises(
        RecipeError, match=r"taught: sampling.max_tokens is 16.* raise model.context"
    ):
        check(recipe)


@pytest.mark.parametrize("student_has", [False, True])
def test_a_stage_after_a_student_has_adapters_if_the_student_has(
    tmp_path: Path, student_has: bool
) -> None:
    adapted, fresh = f'{{ base = "{a_base(tmp_path / "base")}", lora = {{}} }}', "{ depth = 1 }"
    specs = (fresh, adapted) if student_has else (adapted, fresh)
    recipe = after_a_student(tmp_path, *specs, RL)
    models = Models(recipe, Tasks(recipe), tmp_path / "out")
    taught, after = recipe.stages
    opened = models.begin(taught)
    models.save(taught.name, opened.model, opened.tokenizer)
    assert any(adapters(models.begin(after).model)) == student_has


def test_a_stage_after_a_student_costs_what_the_student_does(tmp_path: Path) -> None:
    deep, shallow = "{ depth = 3 }", "{ depth = 1 }"

    def after(model: str, student: str) -> tuple[float, float]:
        cost = plan(after_a_student(tmp_path, model, student, RL), Peak(stated=200.0)).stages[-1]
        return cost.learn_flops, cost.sample_flops

    assert after(deep, shallow) == after(shallow, shallow) < after(shallow, deep)
    grown, alike = (
        plan(after_a_student(tmp_path, model, deep, RL), Peak(stated=200.0)).memory
        for model in (shallow, deep)
    )
    assert grown == alike


def on_policy(folder: Path, teacher: Path, *changes: str) -> Recipe:
    """A fresh model, or another, learns a little, and is then judged by the teacher."""
    top, taught = AFTER_A_STUDENT.partition("student")[0].split("[[stages]]")
    first = '[[stages]]\nname = "first"\n' + SFT.replace("512", "64")
    top, taught = (part.format(model="{ depth = 1, context = 64 }") for part in (top, taught))
    text = f"{top}{first}\n[[stages]]{taught}"
    own = ("form=on_policy", f"teacher='{teacher}'", "batch_tokens=32")
    changes += tuple(f"stages.taught.{each}" for each in own)
    return load_recipe(write_recipe(folder, text), changes)


@pytest.mark.parametrize(
    "student",
    ["model={{base='{one}'}}", "tokenizer.like='{one}'", "tokenizer.vocabulary=270"],
)
def test_a_teacher_of_another_vocabulary_is_refused_before_it_teaches(
    tmp_path: Path, student: str
) -> None:
    one, other = a_base(tmp_path / "one"), a_base(tmp_path / "other", "four five six")
    recipe = on_policy(tmp_path, other, student.format(one=one))
    with pytest.raises(RecipeError, match=r"stage taught: token \d+ is .*the student's") as caught:
        run_recipe(recipe, tmp_path / "out")
    assert "\n" not in str(caught.value)
    # What a tokenizer made here holds is known when it is made, all else before.
    assert (tmp_path / "out").exists() == ("vocabulary" in student)


def test_a_teacher_of_the_same_vocabulary_teaches(tmp_path: Path) -> None:
    one, same = a_base(tmp_path / "one"), a_base(tmp_path / "same")
    recipe = on_policy(tmp_path, same, f"model={{base='{one}'}}")
    assert run_recipe(recipe, tmp_path / "out").status == "done"
