"""docs/your-own-task.md, as it stands: its file and its commands, with less of everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mull_command import make_store
from train_run_parts import tiny

from mull.train.run import run_recipe
from mull.train.run_folder import comparable
from mull.train.shipped import read_recipe

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "your-own-task.md").read_text(encoding="utf-8")
# What a reader leaves out: the page's run in half a minute.
SHORTER = (
    "--set stages.cold-start.steps=1 --set stages.cold-start.batch_tokens=256 "
    "--set stages.reasoning.steps=1 --set stages.reasoning.questions=1 "
    "--set stages.reasoning.group=2 --set stages.reasoning.resample=1.0 "
    "--set stages.reasoning.sampling.max_tokens=8 --set stages.reasoning.sampling.think_budget=4 "
    "--set stages.scores.problems=2 --set stages.scores.sampling.max_tokens=8 "
    "--set stages.base-direct.problems=2 --set stages.base-direct.sampling.max_tokens=8"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_pages_file_is_the_shipped_one() -> None:
    (block,) = blocks("python")
    assert block == (ROOT / "recipes" / "own-task" / "refunds.py").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_runs_as_it_stands(smollm2_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "refunds.py").write_text(blocks("python")[0])
    store = make_store(smollm2_gguf, tmp_path / "home")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = []
    for command in "".join(blocks("sh")).splitlines():
        short = f"{command} {SHORTER}" if "--out" in command else command
        short += " --max-tokens 8" if command.startswith("mull ask") else ""
        done = subprocess.run(
            ["bash", "-c", short],
            env={**os.environ, "PATH": path, "MULL_HOME": str(store)},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    plan, result, _answer = said
    assert "refunds: 134.5 M parameters" in plan
    assert result.strip() == "refunds/final"
    assert "Before and after" in (tmp_path / "refunds" / "report.html").read_text()
    scored = [r["stage"] for r in comparable(tmp_path / "refunds" / "metrics.jsonl")
              if r["kind"] == "eval"]  # fmt: skip
    assert scored == ["model", "cold-start", "reasoning", "model"]


def test_questions_and_answers_alone_make_a_thinking_model(tmp_path: Path) -> None:
    base = _parity_model(tmp_path)
    lines = [{"question": f"{n}?", "answer": "odd" if n % 2 else "even"} for n in range(400)]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("\n".join(map(json.dumps, lines)))
    changes = [
        "stages.answers.steps=1",
        "stages.answers.batch_tokens=256",
        "stages.tried.questions=12",
        "stages.tried.sampling={max_tokens=16, think_budget=4}",
        "stages.cold-start.batch_tokens=128",
        "stages.reasoning.steps=1",
        "stages.reasoning.questions=3",
        "stages.reasoning.sampling={max_tokens=16, think_budget=4}",
        "stages.scores.problems=4",
        "stages.scores.sampling={max_tokens=16, think_budget=4}",
    ]
    changes += [f"stages.{stage}.max_length=64" for stage in ("answers", "cold-start")]
    recipe = read_recipe(str(asked), changes, base=str(base))
    assert run_recipe(recipe, tmp_path / "out").status == "done"
    kept = [json.loads(line) for line in (tmp_path / "out/kept/tried.jsonl").open()]
    assert any(each["thinking"] for each in kept)  # in the model's own words


def _parity_model(folder: Path) -> Path:
    """A model that answers now and then."""
    recipe = tiny(folder)
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_recipe(recipe, folder / "base")
    finally:
        torch.set_num_threads(before)
    return folder / "base" / "final"
