"""Greatest common divisor."""

from __future__ import annotations

import math
import random

from mull.tasks.families.digits import subtract
from mull.tasks.families.family import Family, worded
from mull.tasks.task import Problem

_WORDINGS = (
    "What is the greatest common divisor of {a} and {b}?",
    "Find the gcd of {a} and {b}.",
    "Compute gcd({a}, {b}).",
)
# Digits of the numbers, and the fewest and most subtractions.
_SHAPES = ((2, 2, 4), (2, 3, 7), (3, 4, 7), (3, 5, 10), (3, 8, 14), (4, 8, 14), (4, 12, 20))


class Gcd(Family):
    """Greatest common divisor by Euclid's subtractions: the smaller from the larger until nothing
    is left.

    Levels (digits, subtractions): 0: 2, 2-4; 1: 2, 3-7; 2: 3, 4-7; 3: 3, 5-10; 4: 3, 8-14;
    5: 4, 8-14; 6: 4, 12-20. A subtraction of three digits is 35 symbols: level 2 is about 170.
    """

    name = "gcd"
    hardest = len(_SHAPES) - 1

    def make(self, rng: random.Random, level: int) -> Problem:
        digits, fewest, most = _SHAPES[level]
        while True:
            divisor = rng.randint(1, 10**digits // 8)
            top = (10**digits - 1) // divisor
            a, b = divisor * rng.randint(1, top), divisor * rng.randint(1, top)
            if a != b and fewest <= count_subtractions(a, b) <= most:
                break
        answer = math.gcd(a, b)
        steps = gcd_steps(a, b, digits)
        return self.problem(worded(_WORDINGS, a=a, b=b), str(answer), level, steps)


def count_subtractions(a: int, b: int) -> int:
    """The sum of Euclid's quotients."""
    count = 0
    while b:
        count += a // b
        a, b = b, a % b
    return count


def gcd_steps(a: int, b: int, width: int) -> str:
    """A line per subtraction, backwards; ends in the greatest common divisor."""
    lines = []
    while a and b:
        a, b = max(a, b), min(a, b)
        lines.append(subtract(a, b, width))
        a -= b
    return "\n".join([*lines, str(a or b)])
