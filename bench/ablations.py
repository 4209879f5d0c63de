"""Claim: none. What each part of nano, and each algorithm of reinforcement learning, is worth in
the same time on the same core; negative results included (docs/log.md).

architectures: nano's pretraining for so many minutes at a constant rate, then its cold start.
algorithms: reinforcement learning for so many minutes at a constant rate from --start, the result
of a cold start. All are scored on the same held-out problems; what is finished in --out stays.
Run: .venv/bin/python bench/ablations.py architectures|algorithms [--start MODEL] [--minutes N]
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from options import ROOT
from stages import score

from mull.train.recipe_file import parse_recipe
from mull.train.run import run_recipe

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mla-moe-mtp": {},
    "mla-moe": {"mtp": False},
    "mla-dense": {"experts": False},
    "mla-dense-without-mtp": {"experts": False, "mtp": False},
    "dense": {"architecture": "dense", "experts": False, "mtp": False},
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": "grpo"},
    "grpo-kl": {"algorithm": "grpo", "kl": 0.01, "reference_every": 10_000},
    "dr_grpo": {"algorithm": "dr_grpo"},
    "dapo": {"algorithm": "dapo", "resample": 2.0},
    "gspo": {"algorithm": "gspo"},
    "cispo": {"algorithm": "cispo"},
}
SCORES = {
    "name": "scores",
    "kind": "eval",
    "tasks": ["sums", "harder"],
    "sampling": {"max_tokens": 320},
}


def architecture(nano: dict[str, Any], part: dict[str, Any], minutes: float) -> dict[str, Any]:
    base, cold_start = (_stage(nano, name) for name in ("base", "dev1"))
    rate = base["optimiser"] | {"decay": 0.0}
    base |= {"budget": _budget(minutes), "steps": 100_000, "optimiser": rate}
    return nano | {"model": nano["model"] | part, "stages": [base, cold_start]}


def algorithm(
    nano: dict[str, Any], part: dict[str, Any], minutes: float, start: str
) -> dict[str, Any]:
    learning = _stage(nano, "dev2") | {
        "name": "rl",
        "start": "model",
        "steps": 100_000,
        "budget": _budget(minutes),
        "optimiser": {"learning_rate": 5e-4, "warmup": 5},
    }
    values = {key: value for key, value in nano.items() if key != "tokenizer"}
    return values | {"model": {"base": start}, "stages": [learning | part]}


def _stage(nano: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(next(stage for stage in nano["stages"] if stage["name"] == name))


def _budget(minutes: float) -> str:
    return f"{round(60 * minutes)}s"


def result(recipe: dict[str, Any], out: Path) -> dict[str, Any]:
    """Steps of the first stage, and percents of the last one's model."""
    if not (out / "final").is_dir():
        run_recipe(parse_recipe(recipe, where=out.name, folder=ROOT), out, resume=out.is_dir())
    if not (out / "final").is_dir():
        sys.exit(f"{out}: stopped; the same command goes on")
    with (out / "metrics.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    first, last = recipe["stages"][0]["name"], recipe["stages"][-2]["name"]
    steps = next(r["step"] for r in rows if r["kind"] == "stage_end" and r["stage"] == first)
    scored = [r for r in rows if r["kind"] == "eval" and r["stage"] == last]
    found = {
        f"{task}, {of}": score([r for r in scored if r["task"] == task], of)
        for task in SCORES["tasks"]
        for of in ("pass_at_1", "greedy")
    }
    return {"steps": steps} | {name: round(percent, 1) for name, percent in found.items()}


def variants(chosen: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    nano = tomllib.loads((ROOT / "recipes" / "nano.toml").read_text(encoding="utf-8"))
    nano["seed"] = chosen.seed
    scores = SCORES | {"problems": chosen.problems}
    for name, part in (ARCHITECTURES if chosen.what == "architectures" else ALGORITHMS).items():
        if chosen.what == "architectures":
            recipe = architecture(nano, part, chosen.minutes)
        else:
            recipe = algorithm(nano, part, chosen.minutes, chosen.start)
        recipe["stages"].append(scores)
        yield name, recipe | {"name": name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("architectures", "algorithms"))
    parser.add_argument("--start", default="nano", help="a model after its cold start")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("ablations"))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    for name, recipe in variants(chosen):
        row = result(recipe, chosen.out / name)
        if chosen.json:
            print(json.dumps({"variant": name} | row), flush=True)
        else:
            figures = ", ".join(f"{key} {value}" for key, value in row.items())
            print(f"{name}: {figures}", flush=True)


if __name__ == "__main__":
    main()
