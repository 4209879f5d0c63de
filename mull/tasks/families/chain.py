"""Chains of operations on one running value."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mull.errors import TaskError
from mull.tasks.families.digits import add, backwards, subtract, times_digit
from mull.tasks.families.family import Family
from mull.tasks.task import Problem

_WORDS = {"+": "add", "-": "subtract", "*": "multiply by"}


class Chain(Family):
    """A running value through additions, subtractions and multiplications by one digit.

    Levels: level + 2 operations. digits: the running value stays below 10**digits (default 3) and
    never negative. First the value, backwards, and all operations; then a line per operation: ten
    symbols for each digit of the value, the new value and the operations that are left, so that a
    line follows from the one before alone. Level 2 (four operations) is about 165, with two digits
    about 120.
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
            operator, operand = _draw_operation(rng, value, limit)
            operations.append((operator, operand))
            value = _apply(value, operator, operand)
        steps = f"{chain_steps(start, operations, self.digits)}\n{value}"
        return self.problem(_question(start, operations), str(value), level, steps)


def chain_steps(value: int, operations: Sequence[tuple[str, int]], width: int) -> str:
    """A line per operation, ended by the value backwards and what is left to do."""
    told = [f" {operator}{operand}" for operator, operand in operations]
    lines = [backwards(value, width) + "".join(told)]
    for done, (operator, operand) in enumerate(operations, 1):
        line = _line(value, operator, operand, width)
        value = _apply(value, operator, operand)
        lines.append(line + "".join(told[done:]))
    return "\n".join(lines)


def _draw_operation(rng: random.Random, value: int, limit: int) -> tuple[str, int]:
    if rng.random() < 0.35 and 0 < value * 2 < limit:
        return "*", rng.randint(2, min(9, (limit - 1) // value))
    grows = rng.random() < 0.45 if 1 < value < limit - 2 else value <= 1
    return ("+", rng.randint(1, limit - 1 - value)) if grows else ("-", rng.randint(1, value - 1))


def _apply(value: int, operator: str, operand: int) -> int:
    if operator == "*":
        return value * operand
    return value + operand if operator == "+" else value - operand


def _line(value: int, operator: str, operand: int, width: int) -> str:
    if operator == "*":
        return f"{times_digit(value, operand, width)} {backwards(value * operand, width)}"
    return (add if operator == "+" else subtract)(value, operand, width)


def _question(start: int, operations: list[tuple[str, int]]) -> str:
    """In words when the start is odd, else as a bracketed expression: one wording per chain."""
    if start % 2:
        told = ", ".join(f"{_WORDS[operator]} {operand}" for operator, operand in operations)
        return f"Start with {start}, {told}. What is the result?"
    expression = str(start)
    for operator, operand in operations[:-1]:
        expression = f"({expression} {operator} {operand})"
    operator, operand = operations[-1]
    return f"What is {expression} {operator} {operand}?"
