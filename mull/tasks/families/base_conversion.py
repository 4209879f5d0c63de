"""Conversion between base ten and smaller bases."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mull.errors import TaskError
from mull.tasks.families.digits import backwards, divide, times_digit
from mull.tasks.families.family import Family, number_of_digits, worded
from mull.tasks.task import Problem

_TO = (
    "Convert {number} from base 10 to base {base}.",
    "Write {number} in base {base}.",
)
_FROM = (
    "Convert {number} from base {base} to base 10.",
    "What is {number} in base {base} as a decimal number?",
)


class BaseConversion(Family):
    """A number from base ten to a base of one digit, or back, each half the time.

    Levels: the number has level + 2 digits in base ten. bases: lowest and highest (default 5 to 9).
    To a base: a line per division, ended by `quotient;digits so far`. From a base: a line per digit
    (times base, plus digit), ended by the value backwards and the digits that are left. Level 1
    (three digits) is about 75 symbols, level 2 about 130.
    """

    name = "base_conversion"
    hardest = 5

    def __init__(self, levels: Sequence[int] | int = (0, 1), bases: Sequence[int] = (5, 9)) -> None:
        super().__init__(levels)
        if len(bases) != 2 or not 2 <= bases[0] <= bases[1] <= 9:
            raise TaskError(f"task base_conversion: bases must be two within 2 to 9, not {bases!r}")
        self.bases = (bases[0], bases[1])

    def make(self, rng: random.Random, level: int) -> Problem:
        value, base = number_of_digits(rng, level + 2), rng.randint(*self.bases)
        written = in_base(value, base)
        if rng.random() < 0.5:
            question = worded(_TO, number=value, base=base)
            return self.problem(question, written, level, to_base_steps(value, base))
        question = worded(_FROM, number=written, base=base)
        return self.problem(question, str(value), level, from_base_steps(written, base))


def in_base(value: int, base: int) -> str:
    digits = ""
    while True:
        value, digit = divmod(value, base)
        digits = f"{digit}{digits}"
        if not value:
            return digits


def to_base_steps(value: int, base: int) -> str:
    """Divide until the quotient is 0; the remainders, last first, are the digits."""
    lines = []
    digits = ""
    while value or not digits:
        line = divide(value, base)
        value, digit = divmod(value, base)
        digits = f"{digit}{digits}"
        lines.append(f"{line} {value};{digits}")
    return "\n".join([*lines, digits])


def from_base_steps(written: str, base: int) -> str:
    """The value so far times the base plus the next digit, from the first digit on."""
    value, left = int(written[0]), written[1:]
    lines = [f"{backwards(value)} {left}"]
    while left:
        line = times_digit(value, base, len(str(value)), carry=int(left[0]))
        value, left = value * base + int(left[0]), left[1:]
        lines.append(f"{line} {backwards(value)} {left}".rstrip())
    return "\n".join([*lines, str(value)])
