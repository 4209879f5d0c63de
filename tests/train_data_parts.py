"""A toy task, and a tokenizer trained on it, for the tests of training data."""

import random
from collections.abc import Iterator
from pathlib import Path

from mull.tasks.task import Problem, Split, Verdict, split_of
from mull.text import ChatTemplate, Tokenizer
from mull.train.data.tokenizer import train_tokenizer, write_tokenizer
from mull.train.data.writer import TraceWriter
from mull.train.recipe import Recipe
from mull.train.recipe_file import parse_recipe
from mull.train.recipe_parts import TokenizerSpec


class Sums:
    """Sums of three numbers, two steps each; endless, or that many problems."""

    name = "sums"

    def __init__(self, most: int | None = None, has_steps: bool = True) -> None:
        self.most = most
        self.has_steps = has_steps

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"{split}/{seed}")
        made = 0
        while self.most is None or made < self.most:
            a, b, c = (rng.randrange(10, 1000) for _ in range(3))
            question = f"What is {a} + {b} + {c}?"
            if split_of(question) == split:
                steps = f"{a}+{b}={a + b}\n{a + b}+{c}={a + b + c}\n{a + b + c}"
                made += 1
                yield Problem(
                    question, str(a + b + c), self.name, steps=steps if self.has_steps else None
                )

    def verify(self, problem: Problem, text: str) -> Verdict:
        return Verdict.CORRECT if text.strip() == problem.answer else Verdict.WRONG


def texts(count: int = 200) -> Iterator[str]:
    for problem, _ in zip(Sums().problems("train", 1), range(count), strict=False):
        yield from (problem.question, problem.steps or "", "\n\n", problem.answer)


def tokenizer_folder(folder: Path, vocabulary: int = 300) -> Path:
    write_tokenizer(train_tokenizer(texts(), TokenizerSpec(vocabulary=vocabulary)), folder)
    return folder


def writer_of(folder: Path) -> TraceWriter:
    return TraceWriter(ChatTemplate.for_tokenizer(Tokenizer.from_source(folder)))


def recipe_with(*data: dict[str, object], kind: str = "pretrain", **stage: object) -> Recipe:
    """A recipe of one stage with these sources, and the task `sums`."""
    values = {
        "name": "toy",
        "model": {"depth": 2},
        "tasks": {"sums": {"families": {"addition": {}}}},
        "stages": [
            {
                "kind": kind,
                "name": "learn",
                "batch_tokens": 512,
                "max_length": 128,
                "data": list(data),
                **({} if "epochs" in stage else {"steps": 8}),
                **stage,
            }
        ],
    }
    return parse_recipe(values, where="toy", folder=Path())
