"""An expression worked out operation by operation, in lines that a small model can learn: what is
left of it after each, signs said before digits.
"""

from __future__ import annotations

import ast
import re

from mull.tasks.families.digits import add, divide, subtract
from mull.tasks.families.multiplication import multiplication_steps

_NUMBER = re.compile(r"-?\d+")


def reduce(left: str, lines: list[str]) -> int | None:
    """The value of an expression of whole numbers, its steps appended; None where a division leaves
    a remainder or something else is in it."""
    while not _NUMBER.fullmatch(left):
        body = ast.parse(left, mode="eval").body
        node = _reducible(body, left)
        if node is None:  # a number in parentheses
            return _number(body)
        value = _value(node, lines)
        if value is None:
            return None
        left = f"{left[: node.col_offset]}{value}{left[node.end_col_offset :]}"
        if not _NUMBER.fullmatch(left):
            lines.append(left)
    return int(left)


def _reducible(node: ast.expr, text: str) -> ast.expr | None:
    """The first operation whose operands are written as numbers, or sign before parentheses."""
    operands: list[ast.expr] = []
    if isinstance(node, ast.BinOp):
        operands = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and not _is_number(node, text):
        operands = [node.operand]
    for operand in operands:
        if (found := _reducible(operand, text)) is not None:
            return found
    return node if operands else None


def _is_number(node: ast.expr, text: str) -> bool:
    return _NUMBER.fullmatch(text[node.col_offset : node.end_col_offset]) is not None


def _value(node: ast.expr, lines: list[str]) -> int | None:
    if isinstance(node, ast.BinOp):
        a, b = _number(node.left), _number(node.right)
        return None if a is None or b is None else _operate(a, node.op, b, lines)
    return _number(node)


def _number(node: ast.expr) -> int | None:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _number(operand)
            return None if inner is None else -inner
    return None


def _operate(a: int, op: ast.operator, b: int, lines: list[str]) -> int | None:
    match op:
        case ast.Add():
            lines.append(signed_sum(a, b))
            return a + b
        case ast.Sub():
            lines.append(signed_sum(a, -b))
            return a - b
        case ast.Mult():
            lines.append(product(a, b))
            return a * b
        case ast.Div() if b and a % b == 0:
            lines.append(f"{a}/{b}: {divide(abs(a), abs(b))} {a // b}")
            return a // b
    return None


def signed_sum(a: int, b: int) -> str:
    """`a+b: sign digits result`: magnitudes are added if the signs agree, else the smaller is
    taken from the larger."""
    width = len(str(max(abs(a), abs(b))))
    large, small = max(abs(a), abs(b)), min(abs(a), abs(b))
    has_one_sign = (a < 0) == (b < 0)
    digits = add(large, small, width + 1) if has_one_sign else subtract(large, small, width)
    return f"{a}{b:+d}: {_sign(a + b)} {digits} {a + b}"


def product(a: int, b: int) -> str:
    large, small = max(abs(a), abs(b)), min(abs(a), abs(b))
    steps = multiplication_steps(large, small)
    return f"{a}*{b}: {_sign(a * b)} {steps}" + (f"\n{a * b}" if a * b < 0 else "")


def _sign(value: int) -> str:
    return "-" if value < 0 else "+"
