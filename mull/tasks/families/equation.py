"""Linear equations in one unknown."""

from __future__ import annotations

import random

from mull.tasks.families.family import Family, worded
from mull.tasks.task import Problem, Verdict
from mull.tasks.verify import judge_text

_WORDINGS = ("Solve {left} = {right} for x.", "What is x if {left} = {right}?")


class Equation(Family):
    """Linear equations such as `3 * (2 * x + 4) - 5 = 25`; x is a whole number from 0 to 20.

    Levels: level + 2 operations around x, a product and a sum by turns, values below 1000. A line
    per operation undone: level 2 is about 60 symbols.
    """

    name = "equation"
    hardest = 4

    def make(self, rng: random.Random, level: int) -> Problem:
        while True:
            x = rng.randint(0, 20)
            operations = [_draw_operation(rng, index % 2 == 0) for index in range(level + 2)]
            value = x
            for operator, operand in operations:
                value = _apply(value, operator, operand)
                if not 0 <= value < 1000:
                    break
            else:
                break
        sides = ["x"]
        for operator, operand in operations:
            sides.append(_wrap(sides[-1], operator, operand))
        question = worded(_WORDINGS, left=_spaced(sides[-1]), right=value)
        steps = f"{_undo(sides, operations, value)}\n{x}"
        return self.problem(question, str(x), level, steps)

    def verify(self, problem: Problem, text: str) -> Verdict:
        return judge_text(text, problem.answer, lambda answer: answer.removeprefix("x = "))


def _draw_operation(rng: random.Random, is_product: bool) -> tuple[str, int]:
    if is_product:
        return "*", rng.randint(2, 9)
    return rng.choice("+-"), rng.randint(1, 30)


def _apply(value: int, operator: str, operand: int) -> int:
    if operator == "*":
        return value * operand
    return value + operand if operator == "+" else value - operand


def _wrap(inner: str, operator: str, operand: int) -> str:
    if operator != "*":
        return f"{inner}{operator}{operand}"
    return f"{operand}*{inner}" if inner == "x" else f"{operand}*({inner})"


def _spaced(side: str) -> str:
    for operator in "+-*":
        side = side.replace(operator, f" {operator} ")
    return side


def _undo(sides: list[str], operations: list[tuple[str, int]], value: int) -> str:
    inverse = {"*": "/", "+": "-", "-": "+"}
    lines = []
    for inner, (operator, operand) in reversed(list(zip(sides[:-1], operations, strict=True))):
        before = value
        if operator == "*":
            value //= operand
        else:
            value = value - operand if operator == "+" else value + operand
        lines.append(f"{inner}={before}{inverse[operator]}{operand}={value}")
    return "\n".join(lines)
