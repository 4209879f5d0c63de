"""Running a recipe: every stage leaves its result, and any stop can be gone on from."""

import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mull_command import MULL, run_here, run_mull
from train_run_parts import (
    RECIPE,
    fingerprint,
    kill,
    on_one_thread,
    start,
    tiny,
    wait_for_records,
    write_recipe,
)

import mull
from mull.errors import RecipeError, TrainError, TrainFailedError
from mull.tasks import Verdict
from mull.tasks.task import split_of
from mull.train.recipe_file import load_recipe
from mull.train.rewards import Judge
from mull.train.run import run_recipe
from mull.train.run_folder import comparable, read_manifest

STAGES = ("base", "zero", "kept", "r1", "student", "scores")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    yield from on_one_thread()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, never stopped."""
    folder = tmp_path_factory.mktemp("run")
    ending = run_recipe(tiny(folder), folder / "out")
    assert ending.status == "done"
    return folder / "out"


def records(out: Path, kind: str) -> list[dict]:
    return [each for each in comparable(out / "metrics.jsonl") if each["kind"] == kind]


def test_every_stage_leaves_what_it_made(finished: Path) -> None:
    assert [record["stage"] for record in records(finished, "stage_end")] == list(STAGES)
    for stage in ("base", "zero", "r1", "student"):
        assert (finished / "stages" / stage / "model.safetensors").is_file()
    kept = (finished / "kept" / "kept.jsonl").read_text().splitlines()
    assert kept
    assert {"question", "thinking", "answer", "ids"} <= set(json.loads(kept[0]))
    manifest = read_manifest(finished)
    assert manifest["status"] == "done"
    assert manifest["done"] == list(STAGES)
    assert manifest["bill"]["total"]["tokens_trained"] > 0
    assert "Before and after" in (finished / "report.html").read_text()


def test_the_result_is_a_model_that_answers(finished: Path) -> None:
    with mull.load(str(finished / "stages" / "base"), precision="fp32") as llm:
        answer = llm.generate("12345?", temperature=0.0, max_tokens=16)
    assert answer.thinking
    assert answer.text in ("odd", "even")
    last = (finished / "stages" / "student" / "model.safetensors").read_bytes()
    assert (finished / "final" / "model.safetensors").read_bytes() == last


def test_reinforcement_measures_what_people_ask_for(finished: Path) -> None:
    steps = [record for record in records(finished, "step") if record["stage"] == "zero"]
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert [record["values"]["age"] for record in steps] == [0, 1, 1]
    names = {"reward", "pass_at_1", "length", "dead_groups", "entropy", "gap", "kl", "truncated"}
    for record in steps:
        assert names <= set(record["values"])
        assert all(math.isfinite(record["values"][name]) for name in names)
    assert steps[0]["values"]["gap"] < 1e-5  # made with the very weights that learn from it


def test_rollout_and_trainer_agree_off_temperature_1_too(tmp_path: Path) -> None:
    text = "[[stages]]".join(RECIPE.split("[[stages]]")[:3])
    changes = ["sampling.temperature=0.7", "truncated=penalise", "steps=1", "minibatches=1"]
    recipe = load_recipe(write_recipe(tmp_path, text), [f"stages.zero.{each}" for each in changes])
    assert run_recipe(recipe, tmp_path / "out").status == "done"
    values = records(tmp_path / "out", "step")[-1]["values"]
    assert values["gap"] < 1e-5
    assert values["importance"] == pytest.approx(1, abs=1e-5)
    assert values["kl"] < 1e-9
    assert values["entropy"] > 0.1


def test_a_verifier_that_always_fails_teaches_nothing_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failed(_judge, _problems, answers):
        return [[Verdict.VERIFIER_FAILED for _ in some] for some in answers]

    monkeypatch.setattr(Judge, "verdicts", failed)
    text = "[[stages]]".join(RECIPE.split("[[stages]]")[:3])
    path, out = write_recipe(tmp_path, text), tmp_path / "out"
    recipe = load_recipe(path, ["stages.base.steps=1", "stages.zero.algorithm=dr_grpo"])
    assert run_recipe(recipe, out).status == "done"
    steps = [record for record in records(out, "step") if record["stage"] == "zero"]
    values = [record["values"] for record in steps]
    assert [each["verifier_failed"] for each in values] == [1.0] * 3
    assert [each["grad_norm"] for each in values] == [0.0] * 3
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the verifier of task parity failed on 100% of the answers") == 1


def test_evaluation_says_how_sure_it_is(finished: Path) -> None:
    scores = records(finished, "eval")
    assert [score["stage"] for score in scores] == ["base", "student"]
    for score in scores:
        assert score["problems"] == 12
        assert not score["ood"]
        assert 0 <= score["pass_at_1"] <= 1
    asked = [s for s in comparable(finished / "samples.jsonl") if s["step"] == 0]
    by_stage = {
        name: [s["question"] for s in asked if s["stage"] == name] for name in ("base", "student")
    }
    assert len(by_stage["base"]) == 6
    assert by_stage["base"] == by_stage["student"]


def test_a_finished_run_resumed_stays_as_it_is(finished: Path, tmp_path: Path) -> None:
    before = fingerprint(finished)
    assert run_recipe(tiny(tmp_path.parent / finished.parent.name), finished, resume=True)
    assert fingerprint(finished) == before


@pytest.mark.slow
def test_killed_anywhere_and_resumed_it_ends_in_the_same_bits(
    finished: Path, tmp_path: Path
) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "out"
    # After so many records: in pretraining, in rl, in distilling.
    for count in (7, 40, 70):
        process = start(recipe, out, *(["--resume"] if out.exists() else []))
        wait_for_records(out, count, process)
        kill(process)
    process = start(recipe, out, "--resume")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert read_manifest(out)["status"] == "done"
    assert fingerprint(out) == fingerprint(finished)
    assert read_manifest(out)["bill"]["total"]["repeated_seconds"] > 0


def test_a_signal_stops_it_with_the_state_saved(finished: Path, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "out"
    process = start(recipe, out)
    wait_for_records(out, 20, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume" in said
    assert read_manifest(out)["status"] == "interrupted"
    last = records(out, "step")[-1]
    assert list(out.glob(f"checkpoints/*-{last['stage']}-{last['step']}"))  # at the very step
    assert run_recipe(tiny(tmp_path), out, resume=True).status == "done"
    assert fingerprint(out) == fingerprint(finished)


def test_a_spent_budget_ends_cleanly_and_more_of_it_goes_on(tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", tiny(tmp_path, "stages.base.steps=500")
    assert run_recipe(recipe, out, budget="0.01s").status == "budget"  # before the first step
    seen, tries = [0], 0
    while len(seen) < 3:
        tries += 1
        total = read_manifest(out)["bill"]["total"]
        spent = total["seconds"] + total["repeated_seconds"]
        ending = run_recipe(recipe, out, resume=True, budget=f"{spent + 0.5 * tries:.2f}s")
        assert ending.status == "budget"
        if (steps := len(records(out, "step"))) > seen[-1]:
            assert (out / "final" / "model.safetensors").is_file()
            last = [record["step"] for record in records(out, "step")][-1]
            assert list(out.glob(f"checkpoints/*-base-{last}"))
            seen.append(steps)
    steps = [record["step"] for record in records(out, "step") if "loss" in record["values"]]
    assert steps == list(range(1, len(steps) + 1))  # none of them twice


def test_a_stage_of_its_own_budget_ends_early_and_the_next_goes_on(tmp_path: Path) -> None:
    changes = ("stages.base.budget=0.05s", "stages.zero.budget=0.05s", "stages.base.steps=900")
    recipe = tiny(tmp_path, *changes)
    recipe = recipe.model_copy(update={"stages": recipe.stages[:2]})
    assert run_recipe(recipe, tmp_path / "out").status == "done"
    ends = records(tmp_path / "out", "stage_end")
    assert [end["stage"] for end in ends] == ["base", "zero"]
    assert ends[0]["step"] < 900


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    changes = ("stages.base.optimiser.learning_rate=1e30", "stages.base.checkpoint_every=1")
    with pytest.raises(TrainFailedError, match=r"stage base: step \d+: the .* is nan.*-base-1"):
        run_recipe(tiny(tmp_path, *changes), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest["status"] == "failed"
    assert "stage base" in manifest["error"]
    assert list((tmp_path / "out" / "checkpoints").glob("*-base-1"))


def test_a_loss_that_is_no_number_is_one_line_on_the_command_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    more = ["--set", "stages.base.optimiser.learning_rate=1e30"]
    done = run_mull("train", str(recipe), "--out", str(tmp_path / "out"), *more)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.match(r"mull: stage base: step \d+: the .* is nan", done.stderr.splitlines()[-1])


def test_a_changed_recipe_is_refused_unless_allowed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_recipe(tiny(tmp_path), out, budget="0.2s")
    changed = tiny(tmp_path, "stages.zero.steps=1", "stages.scores.problems=4")
    with pytest.raises(TrainError, match=r"stages\.scores\.problems, stages\.zero\.steps"):
        run_recipe(changed, out, resume=True)
    ending = run_recipe(changed, out, resume=True, allow_changes=True)
    assert ending.status == "done"
    assert len([r for r in records(out, "step") if r["stage"] == "zero"]) == 1


def test_a_folder_that_holds_something_is_left_alone(finished: Path, tmp_path: Path) -> None:
    before = fingerprint(finished)
    with pytest.raises(TrainError, match="holds a run already"):
        run_recipe(tiny(tmp_path), finished)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    with pytest.raises(TrainError, match=r"is not empty \(letter.txt\)"):
        run_recipe(tiny(tmp_path), tmp_path / "out")
    with pytest.raises(TrainError, match="holds no run"):
        run_recipe(tiny(tmp_path), tmp_path / "nothing", resume=True)
    assert fingerprint(finished) == before


def refused(folder: Path, text: str, *more: str) -> str:
    """What `mull train` says to a recipe, which must be one line and exit code 2."""
    done = run_here("train", str(write_recipe(folder, text)), "--out", str(folder / "out"), *more)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 3", "sed = 3", "unknown key sed; did you mean 'seed'?"),
        ("staleness = 1", "staleness = -1", "stages.zero.staleness"),
        ('task = "parity"\nsteps', 'task = "party"\nsteps', "did you mean 'parity'?"),
        ("depth = 2", "depth = 0", "model.depth"),
        ('"parity.py"', '"absent.py"', "there is no such file"),
        ("max_tokens = 16", "max_tokens = 64", "raise model.context"),
        ("max_tokens = 16", "max_tokens = 16, temperature = 0", "zero: sampling.temperature is 0"),
        ("max_tokens = 16", "max_tokens = 16, top_p = 0.9", "zero: sampling.top_p is 0.9"),
        ("[[stages]]", "[[stages", "not valid TOML"),
        ('teacher = "r1"', 'teacher = "scores"', "'scores', which is no stage before it"),
        ('teacher = "r1"', 'teacher = "r2"', "student: teacher 'r2' is no stage, and no model"),
        ('teacher = "r1"', 'teacher = "http://[::1/v1"', "is no address"),
        ('teacher = "r1"', 'teacher = "http://a/v1"\nform = "on_policy"', "an API does not give"),
        ('teacher = "r1"', 'teacher = "r1"\nform = "on_policy"\nspread = 1', "spread does nothing"),
        ('stage = "kept"', 'stage = "zero"', "keeps no answers; those before it that do: kept"),
        ("epochs = 2", 'epochs = 2\nlearns = "mtp"\nmtp_weight = 0', "give it a weight"),
        ("student = { ", 'learns = "mtp"\nstudent = { mtp = false, ', "no multi-token prediction"),
        ('name = "muon",', 'name = "muon", schedule = "cosine",', "does not fall without decay"),
        ("warmup = 2", "betas = [0.9, 1.0]", "base.optimiser.betas.1: Input should be less than 1"),
        ("warmup = 2", "momentum = 1.0", "base.optimiser.momentum: Input should be less than 1"),
        ("warmup = 2", "momentum = -0.5", "base.optimiser.momentum"),
        ("warmup = 2", "weight_decay = nan", "base.optimiser.weight_decay"),
        ("warmup = 2", "clip = inf", "base.optimiser.clip: Input should be a finite number"),
        ("learning_rate = 0.02", "learning_rate = inf", "base.optimiser.learning_rate"),
        ("kl = 0.01", "gap_alarm = nan", "stages.zero.gap_alarm"),
        ("kl = 0.01", "rewards.correct = -1.0", "stages.zero.rewards.correct"),
        ("kl = 0.01", "rewards.overlong = -1.0", "stages.zero.rewards.overlong"),
        ("kl = 0.01", "importance_cap = inf", "stages.zero.importance_cap"),
        ("chat = 0.7, worked = 0.2, guess = 0.1", "chat = 0.0", "every share of forms is 0"),
        ("max_length = 64", "max_length = 1", "stages.base.max_length"),
        (
            "context = 64 }\nsteps",
            "sizes = { typo = 1 } }\nsteps",
            "student.student.sizes.typo is no",
        ),
        (
            "depth = 2,",
            "depth = 2, sizes = { hidden_size = -1 },",
            "model.sizes: config.json: hidden",
        ),
        (
            "depth = 2, context = 64",
            'base = "nano", lora = { layers = ["lm_head"] }',
            "model.lora.layers names 'lm_head', but the layers that can have adapters are",
        ),
        ("depth = 2, context = 64", 'base = "nano", lora = { alpha = 0 }', "model.lora.alpha"),
        (
            "max_tokens = 16 }\nstudent",
            'max_tokens = 16, temperature = 1e-9 }\nform = "on_policy"\nstudent',
            "student: sampling.temperature is 1e-09",
        ),
        ('kind = "eval"', 'kind = "eval"\nprecision = "bf16"', "key stages.scores.precision"),
        ('kind = "reject"', 'kind = "reject"\nvalidate_every = 2', "stages.kept.validate_every"),
    ],
)
def test_a_malformed_recipe_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in RECIPE
    assert said in refused(tmp_path, RECIPE.replace(old, new))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lacking", "said"),
    [("validation", "stage base: "), ("test", "stage scores: "), ("train", "stage base: ")],
)
def test_a_split_without_questions_is_refused_before_any_work(
    tmp_path: Path, lacking: str, said: str
) -> None:
    lines = [f'{{"question": "{n}?", "answer": "{n}"}}' for n in range(99)]
    kept = [line for n, line in enumerate(lines) if split_of(f"{n}?") != lacking]
    (tmp_path / "few.jsonl").write_text("\n".join(kept))
    line = refused(tmp_path, RECIPE.replace('"parity.py"', '"few.jsonl"'))
    assert said in line
    assert f"falls into the {lacking} split" in line
    assert not (tmp_path / "out").exists()


def test_bad_data_is_named_down_to_the_line(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "1?", "answer": "odd"}\n{"question": "2?"}\n')
    text = RECIPE.replace('"parity.py"', '"bad.jsonl"')
    assert "bad.jsonl, line 2: answer must be a text" in refused(tmp_path, text)
    (tmp_path / "chat.jsonl").write_text('{"messages": 5}\n')
    text = RECIPE.replace(
        'data = [{ task = "parity", forms = { chat = 0.7, worked = 0.2, guess = 0.1 } }]',
        'data = [{ chat = ["chat.jsonl"] }]',
    )
    assert "chat.jsonl:1" in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "bad.jsonl holds no problems"),
        (b'{"question": "1?", "answer": ""}\n', "line 1: answer must be a text that is not empty"),
        (b'{"question": "1?", "answer": "\xff"}\n', "bad.jsonl is not UTF-8 text (byte 30)"),
    ],
)
def test_a_task_that_cannot_be_learnt_is_refused_in_one_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    assert said in refused(tmp_path, RECIPE.replace('"parity.py"', '"bad.jsonl"'))
    assert not (tmp_path / "out").exists()


def test_empty_data_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    text = RECIPE.replace(
        'data = [{ task = "parity", forms = { chat = 0.7, worked = 0.2, guess = 0.1 } }]',
        'data = [{ text = ["empty.txt"] }]',
    )
    assert "empty.txt" in refused(tmp_path, text)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "out"
    # Room for logs and shards, not for a checkpoint of the model.
    limited = f"ulimit -f 256; exec {MULL} train {recipe} --out {out}"
    done = subprocess.run(
        ["bash", "-c", limited],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert "could not be written" in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert run_recipe(tiny(tmp_path), out, resume=True, budget="0.1s").status == "budget"


def test_adapters_on_a_base_change_what_they_adapt_and_nothing_else(
    finished: Path, tmp_path: Path
) -> None:
    base = finished / "stages" / "base"
    layers = '["kv_b_proj", "o_proj"]'
    text = RECIPE.replace(
        "model = { depth = 2, context = 64 }",
        f'model = {{ base = "{base}", lora = {{ rank = 2, layers = {layers} }} }}',
    )
    path = write_recipe(tmp_path, text)
    recipe = mull_recipe(path, "stages.base.steps=4", "stages.zero.kl=0.1")
    recipe = recipe.model_copy(update={"stages": recipe.stages[:2]})
    out = tmp_path / "out"
    assert run_recipe(recipe, out, budget="0.1s").status == "budget"
    assert run_recipe(recipe, out, resume=True).status == "done"
    before, after = weights_of(base), weights_of(out / "final")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("kv_b_proj" in name or "o_proj" in name for name in changed)
    again = tmp_path / "again"
    run_recipe(recipe, again)
    assert fingerprint(again)["weights"] == fingerprint(out)["weights"]


def mull_recipe(path: Path, *changes: str):
    from mull.train.recipe_file import load_recipe

    return load_recipe(path, changes)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_recipe_is_found_by_its_name_or_the_nearest_is_named() -> None:
    from mull.train.shipped import find_recipe, shipped_recipes

    assert "smoke" in shipped_recipes()
    with pytest.raises(RecipeError, match="did you mean 'smoke'"):
        find_recipe("smok")
