"""Claim: the accuracy of the nano that comes with mull rises with its thinking budget.

The same held-out problems of the recipe's task, greedily, with budgets of so many tokens of
thinking; 0 is thinking switched off. At the end of a budget the engine closes the thinking and the
model answers with what it has.
Run: .venv/bin/python bench/think_budget.py [--quick] [--json] [--svg docs/nano-think-budget.svg]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from mull import weights
from mull.tasks import Mixture, Problem, Verdict
from mull.train.models import load, writer_of
from mull.train.problems import Tasks
from mull.train.recipe_parts import Sampling
from mull.train.rollout import Answer, Sampler
from mull.train.shipped import read_recipe

BUDGETS = (0, 16, 32, 64, 96, 128, 192)
ALL = "all"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 560, 260, 44, 36, 12
_NAMES = 130  # room for the families' names to the right of their lines


def answers(model: str, problems: Sequence[Problem], budget: int, room: int) -> list[Answer]:
    files = weights.resolve(model)
    sampler = Sampler(load(model), writer_of(files.path), thinking=budget > 0)
    sampling = Sampling(temperature=0.0, max_tokens=room, think_budget=budget or None)
    questions = [sampler.question(problem, seed) for seed, problem in enumerate(problems)]
    return [one for (one,) in sampler.answers(questions, sampling, 1, logprobs=False)]


def accuracy(
    task: Mixture, problems: Sequence[Problem], said: Sequence[Answer]
) -> dict[str, float]:
    """Share of correct answers of each family, and of all."""
    right: dict[str, list[bool]] = defaultdict(list)
    for problem, answer in zip(problems, said, strict=True):
        is_right = not answer.is_truncated and task.verify(problem, answer.text) is Verdict.CORRECT
        right[problem.family].append(is_right)
        right[ALL].append(is_right)
    return {name: sum(some) / len(some) for name, some in sorted(right.items())}


def plot(rows: Sequence[tuple[int, dict[str, float]]]) -> str:
    """An SVG that reads on light and dark pages alike: a line for each family, a thick one for
    all."""
    most = rows[-1][0]
    right, bottom = _WIDTH - _NAMES, _HEIGHT - _BOTTOM

    def x(budget: float) -> float:
        return _LEFT + budget / most * (right - _LEFT)

    def y(share: float) -> float:
        return bottom - share * (bottom - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'font-family="sans-serif" font-size="11" fill="#808080">',
        "<title>Accuracy of nano by thinking budget</title>",
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<line x1="{_LEFT}" x2="{right}" y1="{y(share):.1f}" y2="{y(share):.1f}" '
            'stroke="#808080" stroke-opacity="0.3"/>'
            f'<text x="{_LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        )
    for budget, _ in rows:
        parts.append(
            f'<text x="{x(budget):.1f}" y="{bottom + 15}" text-anchor="middle">{budget}</text>'
        )
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">tokens of thinking</text>'
    )
    names = [*(name for name in rows[-1][1] if name != ALL), ALL]
    for index, name in enumerate(names):
        colour = f"hsl({index * 360 // len(names)}, 55%, 50%)" if name != ALL else "#808080"
        points = " ".join(f"{x(budget):.1f},{y(found[name]):.1f}" for budget, found in rows)
        width = 3 if name == ALL else 1.5
        # Lines end close together: the names stand below one another beside them.
        height = _TOP + 14 + 16 * index
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
            f'<text x="{right + 14}" y="{height}" fill="{colour}">{name.replace("_", " ")}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--task", default="sums", help="of that recipe")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--room", type=int, default=256, help="tokens an answer may take in all")
    parser.add_argument("--svg", type=Path, help="writes a plot there")
    parser.add_argument("--quick", action="store_true", help="does it run? figures mean nothing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    task = Tasks(read_recipe(args.recipe))[args.task]
    assert isinstance(task, Mixture)
    problems = list(islice(task.problems("test", 0), 20 if args.quick else args.problems))
    rows = []
    for budget in BUDGETS:
        said = answers(args.model, problems, budget, args.room)
        rows.append((budget, accuracy(task, problems, said)))
        if not args.json:
            shares = "  ".join(f"{name} {share:.1%}" for name, share in rows[-1][1].items())
            print(f"budget {budget:>4}: {shares}", flush=True)
    if args.svg is not None:
        args.svg.write_text(plot(rows), encoding="utf-8")
    if args.json:
        found = [{"budget": budget, "accuracy": shares} for budget, shares in rows]
        print(json.dumps({"model": args.model, "problems": len(problems), "results": found}))


if __name__ == "__main__":
    main()
