"""The digit steps that most families share, so that a model learns each of them once.

Every step names the digits it works on and the carry it takes over, so that its result depends on
nothing else: with sums in one piece (`~21+~43=~64`) chains stayed at nothing after four million
tokens of text (docs/log.md). `~` marks a number written backwards, least significant digit first,
as steps make it. Numbers that are added have equal width (zeros fill).
"""

from __future__ import annotations


def backwards(value: int, width: int = 1) -> str:
    """`~` and the digits of value from the units on, filled with zeros to width."""
    return "~" + str(value)[::-1].ljust(width, "0")


def add(left: int, right: int, width: int) -> str:
    """left + right from the units on, a step `digit+digit+carry=two digits` for each of the width
    digits; the tens are the next carry. Ends in the sum, backwards."""
    steps = []
    carry = 0
    for a, b in _columns(left, right, width):
        total = a + b + carry
        steps.append(f"{a}+{b}+{carry}={total:02d}")
        carry = total // 10
    return f"{' '.join(steps)} {backwards(left + right, width)}"


def subtract(left: int, right: int, width: int) -> str:
    """left - right from the units on, a step `digit-digit-borrowed=two digits`: whether ten has to
    be borrowed, and the digit that remains (`3-7-1=15`). left must not be smaller than right."""
    steps = []
    borrowed = 0
    for a, b in _columns(left, right, width):
        remains = a - b - borrowed
        steps.append(f"{a}-{b}-{borrowed}={int(remains < 0)}{remains % 10}")
        borrowed = int(remains < 0)
    return f"{' '.join(steps)} {backwards(left - right, width)}"


def times_digit(value: int, digit: int, width: int, carry: int = 0) -> str:
    """value * digit + carry from the units on, a step `digit*digit=two digits+carry=two digits` for
    each of the width digits of value; the tens are the next carry."""
    steps = []
    for char in str(value)[::-1].ljust(width, "0"):
        product = int(char) * digit
        steps.append(f"{char}*{digit}={product:02d}+{carry}={product + carry:02d}")
        carry = (product + carry) // 10
    return " ".join(steps)


def divide(value: int, divisor: int) -> str:
    """value by a divisor of one digit, a step (division_step) for each digit of the quotient; the
    remainder goes before the next digit."""
    steps = []
    remainder, left = leading(value, divisor)
    while True:
        steps.append(division_step(remainder, divisor))
        remainder %= divisor
        if not left:
            return " ".join(steps)
        remainder, left = remainder * 10 + int(left[0]), left[1:]


def leading(value: int, divisor: int) -> tuple[int, str]:
    """What a division begins with, the first digit or the first two, and the digits after it."""
    digits = str(value)
    first = 1 if int(digits[0]) >= divisor else 2
    return int(digits[:first]), digits[first:]


def division_step(value: int, divisor: int) -> str:
    """`two digits:quotient*divisor=two digits+remainder`, for a quotient of one digit."""
    quotient, remainder = divmod(value, divisor)
    return f"{value:02d}:{quotient}*{divisor}={quotient * divisor:02d}+{remainder}"


def _columns(left: int, right: int, width: int) -> list[tuple[int, int]]:
    """The digits of both, one above the other, from the units on."""
    digits = (str(value)[::-1].ljust(width, "0") for value in (left, right))
    return [(int(a), int(b)) for a, b in zip(*digits, strict=True)]
