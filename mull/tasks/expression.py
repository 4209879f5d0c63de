"""Arithmetic out of a model's mouth, evaluated exactly and within bounds.

Whole numbers, + - * / and brackets; no powers, names or calls exist, so nothing can grow beyond
what its length allows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

_MAX_LENGTH = 300
_MAX_DEPTH = 40
_TOKEN = re.compile(r"\s*([0-9]{1,12}|[-+*/()×÷])")
_SPELLING = {"×": "*", "÷": "/"}


class ExpressionError(ValueError):
    """Not an expression this evaluator takes."""


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The value and the numbers used, in order. Raises ExpressionError."""
    if len(text) > _MAX_LENGTH:
        raise ExpressionError("too long")
    return _Parser(_tokens(text)).parse()


def uses_numbers_to_reach(text: str, numbers: Sequence[int], target: int) -> bool:
    """True if the expression uses exactly these numbers, each once, and equals target. A trailing
    `= target` may stand behind it."""
    expression, equals, claimed = text.partition("=")
    if equals and claimed.strip() != str(target):
        return False
    try:
        value, used = evaluate(expression)
    except (ExpressionError, ZeroDivisionError):
        return False
    return value == target and sorted(used) == sorted(numbers)


def _tokens(text: str) -> list[str]:
    text = text.rstrip()
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"unexpected {text[position]!r}")
        tokens.append(_SPELLING.get(match[1], match[1]))
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent: sum of products of factors."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens[::-1]
        self.depth = 0
        self.used: list[int] = []

    def parse(self) -> tuple[Fraction, list[int]]:
        value = self._sum()
        if self.tokens:
            raise ExpressionError(f"unexpected {self.tokens[-1]!r}")
        return value, self.used

    def _sum(self) -> Fraction:
        value = self._product()
        while self.tokens and self.tokens[-1] in "+-":
            operator, right = self.tokens.pop(), self._product()
            value = value + right if operator == "+" else value - right
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while self.tokens and self.tokens[-1] in "*/":
            operator, right = self.tokens.pop(), self._factor()
            value = value * right if operator == "*" else value / right
        return value

    def _factor(self) -> Fraction:
        token = self.tokens.pop() if self.tokens else ""
        if token.isdigit():
            self.used.append(int(token))
            return Fraction(int(token))
        if token != "(":
            raise ExpressionError(f"unexpected {token!r}")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ExpressionError("too deep")
        value = self._sum()
        if not self.tokens or self.tokens.pop() != ")":
            raise ExpressionError("a bracket is not closed")
        self.depth -= 1
        return value
