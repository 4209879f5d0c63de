"""Claim: nano solves held-out products alike whether or not it was trained on their twins.

A question's own words decide its split, so that the twin of a held-out `37 * 48` may be trained on
as `48 * 37`. Test questions of two-digit factors (the only ones nano was trained on in both
orders), greedily with thinking: those whose twin is in the train split, and those whose is not.
Run: .venv/bin/python bench/twins.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from itertools import islice
from math import sqrt

from mull import weights
from mull.tasks import Problem, Task, Verdict, load_task, split_of
from mull.tasks.families import multiplication, product_sum
from mull.tasks.families.family import worded
from mull.train.models import load, writer_of
from mull.train.recipe_parts import Sampling
from mull.train.rollout import Sampler

LEVEL = 2  # two digits by two
DRAWS = {"multiplication": 12_000, "product_sum": 1_000}  # the first: every question there is
_FACTORS = re.compile(r"(\d+)(?: \* | by | and )(\d+)( [+-] \d+)?")


def twin(problem: Problem) -> str:
    """The same question with its factors the other way round."""
    found = _FACTORS.search(problem.question)
    assert found is not None
    a, b, rest = found.groups()
    if rest is None:
        return worded(multiplication._WORDINGS, a=b, b=a)
    return worded(product_sum._WORDINGS, expression=f"{b} * {a}{rest}")


def right(model: str, task: Task, problems: Sequence[Problem], room: int) -> list[bool]:
    sampler = Sampler(load(model), writer_of(weights.resolve(model).path))
    questions = [sampler.question(problem, seed) for seed, problem in enumerate(problems)]
    greedy = Sampling(temperature=0.0, max_tokens=room)
    said = [one for (one,) in sampler.answers(questions, greedy, 1, logprobs=False)]
    return [
        not answer.is_truncated and task.verify(problem, answer.text) is Verdict.CORRECT
        for problem, answer in zip(problems, said, strict=True)
    ]


def interval(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """95 % of a share (Wilson)."""
    share, spread = hits / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    reach = z * sqrt(share * (1 - share) / of + spread / of / 4) / (1 + spread)
    return middle - reach, min(1.0, middle + reach)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--room", type=int, default=320, help="tokens an answer may take in all")
    parser.add_argument("--quick", action="store_true", help="does it run? figures mean nothing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for name, draws in DRAWS.items():
        task = load_task(name, levels=[LEVEL, LEVEL])
        drawn = islice(task.problems("test", 0), 40 if args.quick else draws)
        problems = list({problem.question: problem for problem in drawn}.values())
        found = right(args.model, task, problems, args.room)
        for is_trained in (True, False):
            some = [
                hit
                for problem, hit in zip(problems, found, strict=True)
                if (split_of(twin(problem)) == "train") is is_trained
            ]
            low, high = interval(sum(some), len(some))
            row = {"family": name, "twin_trained": is_trained, "problems": len(some)}
            rows.append(row | {"right": sum(some), "low": low, "high": high})
            if not args.json:
                where = "in train" if is_trained else "not in train"
                print(
                    f"{name:<16}twin {where:<14}{sum(some):>6} of {len(some):<6}"
                    f"{sum(some) / len(some):7.1%}  ({low:.1%} to {high:.1%})",
                    flush=True,
                )
    if args.json:
        print(json.dumps({"model": args.model, "results": rows}))


if __name__ == "__main__":
    main()
