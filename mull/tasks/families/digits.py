"""The digit steps that most families share, so that a model learns each of them once.

`~` marks a number written backwards, least significant digit first: then every digit of a sum
depends on one column and the column before. Numbers that are added have equal width (zeros fill),
so that the digits of a column are always equally far apart.
"""

from __future__ import annotations


def backwards(value: int, width: int = 1) -> str:
    """`~` and the digits of value from the units on, filled with zeros to width."""
    return "~" + str(value)[::-1].ljust(width, "0")


def add(left: int, right: int, width: int) -> str:
    return f"{backwards(left, width)}+{backwards(right, width)}={backwards(left + right, width)}"


def subtract(left: int, right: int, width: int) -> str:
    """left must not be smaller than right."""
    return f"{backwards(left, width)}-{backwards(right, width)}={backwards(left - right, width)}"


def times_digit(value: int, digit: int, width: int, carry: int = 0) -> str:
    """value * digit + carry from the units on, a step `digit*digit+carry=two digits` for each of
    the width digits of value; the tens are the next carry."""
    steps = []
    for char in str(value)[::-1].ljust(width, "0"):
        product = int(char) * digit + carry
        steps.append(f"{char}*{digit}+{carry}={product:02d}")
        carry = product // 10
    return " ".join(steps)


def divide(value: int, divisor: int) -> str:
    """value by divisor from the first digit on, a step `digits=quotient*divisor+remainder` for each
    digit of value, digits being one more than the divisor has; the remainder goes before the next
    digit."""
    width = len(str(divisor)) + 1
    steps = []
    remainder = 0
    for char in str(value):
        current = remainder * 10 + int(char)
        quotient, remainder = divmod(current, divisor)
        steps.append(f"{current:0{width}d}={quotient}*{divisor}+{remainder}")
    return " ".join(steps)
