"""The numbers game: reach a target with all numbers."""

from __future__ import annotations

import random

from mull.tasks.expression import uses_numbers_to_reach
from mull.tasks.families.family import Family, worded
from mull.tasks.task import Problem, Verdict
from mull.tasks.verify import judge_by

_WORDINGS = (
    "Use the numbers {numbers}, each exactly once, with + - * / to reach {target}.",
    "Combine {numbers}, each exactly once, into an expression that equals {target}.",
)
_MAX_VALUE = 999


class Countdown(Family):
    """An expression of all given numbers that equals the target; any right one counts.

    Levels: level + 3 numbers of 1 to 20. Up to two tries that miss, then one that reaches the
    target, each the running list of operations; then the expression. Level 0 is about 50 symbols.
    """

    name = "countdown"
    hardest = 3

    def make(self, rng: random.Random, level: int) -> Problem:
        numbers = [rng.randint(1, 20) for _ in range(level + 3)]
        expression, target, solution = _combine(rng, numbers)
        lines = []
        for _ in range(rng.randint(0, 2)):
            _, value, tried = _combine(rng, numbers)
            if value != target:
                lines.append(f"{tried} no")
        lines.append(f"{solution} yes")
        told = ", ".join(map(str, numbers))
        question = worded(_WORDINGS, numbers=told, target=target)
        steps = "\n".join([*lines, expression])
        return self.problem(question, expression, level, steps, numbers=numbers, target=target)

    def verify(self, problem: Problem, text: str) -> Verdict:
        numbers, target = problem.data["numbers"], problem.data["target"]
        return judge_by(text, lambda answer: uses_numbers_to_reach(answer, numbers, target))


def _combine(rng: random.Random, numbers: list[int]) -> tuple[str, int, str]:
    """Join two numbers at random until one is left: expression, value, the operations done."""
    items = [(str(number), number) for number in numbers]
    done = []
    while len(items) > 1:
        (left, a), (right, b) = (items.pop(rng.randrange(len(items))) for _ in range(2))
        if a < b:
            left, a, right, b = right, b, left, a
        operators = ["+", "-"]
        if a * b <= _MAX_VALUE:
            operators.append("*")
        if b and a % b == 0:
            operators.append("/")
        operator = rng.choice(operators)
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[operator]
        done.append(f"{a}{operator}{b}={value}")
        items.append(
            (f"({left}{operator}{right})" if len(items) else f"{left}{operator}{right}", value)
        )
    return items[0][0], items[0][1], " ".join(done)
