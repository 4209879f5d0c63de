"""Chains of operations on one running value."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mull.errors import TaskError
from mull.tasks.families.digits import add_steps, backwards, subtract_steps, times_digit
from mull.tasks.families.family import Family
from mull.tasks.task import Problem

_WORDS = {"+": "add", "-": "subtract", "*": "multiply by"}


class Chain(Family):
    """A running value through additions, subtractions and multiplications by one digit.

    Levels: level + 2 operations. digits: the running value stays below 10**digits (default 3) and
    never negative. A line per operation: the value, the operation in the question's own words, ten
    symbols or more for each digit of the value. Level 2 (four operations) is about 160 symbols,
    with two digits about 110.
    """

    name = "chain"
    hardest = 18

    def __init__(self, levels: Sequence[int] | int = (0, 1), digits: int = 3) -> None:
        super().__init__(levels)
        if not 2 <= digits <= 9:
            raise TaskError(f"task chain: digits must be 2 to 9, not {digits!r}")
        self.digits = digits

    def make(self, rng: random.Random, level: int) -> Problem:
        limit = 10**self.digits
        start = value = rng.randrange(2, limit)
        operations = []
        for _ in range(level + 2):
            while (operation := _draw_operation(rng, value, limit)) in operations:
                pass  # what follows on an operation could not be told from what follows on its twin
            operations.append(operation)
            operator, operand = operation
            value = _apply(value, operator, operand)
        steps = f"{chain_steps(start, operations, self.digits)}\n{value}"
        return self.problem(_question(start, operations), str(value), level, steps)


def chain_steps(start: int, operations: Sequence[tuple[str, int]], width: int) -> str:
    """A line per operation: the value backwards, the operation as the question tells it, its digit
    steps. At the end the value once more."""
    value = start
    lines = []
    for operator, operand in operations:
        told = f"{backwards(value, width)}{_told(start, operator, operand)}"
        lines.append(f"{told}: {_steps(value, operator, operand, width)}")
        value = _apply(value, operator, operand)
    return "\n".join([*lines, backwards(value, width)])


def _draw_operation(rng: random.Random, value: int, limit: int) -> tuple[str, int]:
    if rng.random() < 0.35 and 0 < value * 2 < limit:
        return "*", rng.randint(2, min(9, (limit - 1) // value))
    grows = rng.random() < 0.45 if 1 < value < limit - 2 else value <= 1
    return ("+", rng.randint(1, limit - 1 - value)) if grows else ("-", rng.randint(1, value - 1))


def _apply(value: int, operator: str, operand: int) -> int:
    if operator == "*":
        return value * operand
    return value + operand if operator == "+" else value - operand


def _steps(value: int, operator: str, operand: int, width: int) -> str:
    if operator == "*":
        return times_digit(value, operand, width)
    return (add_steps if operator == "+" else subtract_steps)(value, operand, width)


def _is_in_words(start: int) -> bool:
    """Else as a bracketed expression: one wording per chain."""
    return start % 2 == 1


def _told(start: int, operator: str, operand: int) -> str:
    if _is_in_words(start):
        return f", {_WORDS[operator]} {operand}"
    return f" {operator} {operand}"


def _question(start: int, operations: list[tuple[str, int]]) -> str:
    told = [_told(start, operator, operand) for operator, operand in operations]
    if _is_in_words(start):
        return f"Start with {start}{''.join(told)}. What is the result?"
    return f"What is {'(' * (len(told) - 1)}{start}{')'.join(told)}?"
