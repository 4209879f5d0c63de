"""Evaluation of truth values."""

from __future__ import annotations

import random
import re

from mull.tasks.families.family import Family, worded
from mull.tasks.task import Problem

_WORDINGS = ("Evaluate {expression}.", "Is this True or False: {expression}?")
# Innermost brackets hold `not V` or `V and W`, which is all that one step rewrites.
_INNERMOST = re.compile(r"\((?:not (True|False)|(True|False) (and|or|xor) (True|False))\)")


class Boolean(Family):
    """A bracketed expression of `and`, `or`, `xor`, `not`; the answer is True or False.

    Levels: level + 2 operators. A line per operator: the leftmost innermost bracket gives way to
    its value and the expression is restated. Level 2 is about 55 symbols.
    """

    name = "boolean"
    hardest = 10

    def make(self, rng: random.Random, level: int) -> Problem:
        expression = _draw(rng, level + 2)
        lines = []
        reduced = expression
        while reduced not in ("True", "False"):
            reduced = _INNERMOST.sub(_value, reduced, count=1)
            lines.append(reduced)
        question = worded(_WORDINGS, expression=expression)
        return self.problem(question, reduced, level, "\n".join(lines))


def _draw(rng: random.Random, operators: int) -> str:
    if operators == 0:
        return rng.choice(("True", "False"))
    if rng.random() < 0.25:
        return f"(not {_draw(rng, operators - 1)})"
    left = rng.randrange(operators)
    word = rng.choice(("and", "or", "xor"))
    return f"({_draw(rng, left)} {word} {_draw(rng, operators - 1 - left)})"


def _value(match: re.Match[str]) -> str:
    negated, left, word, right = match.groups()
    if negated:
        return str(negated == "False")
    a, b = left == "True", right == "True"
    return str({"and": a and b, "or": a or b, "xor": a != b}[word])
