"""A product and a sum in one expression."""

from __future__ import annotations

import random

from mull.tasks.families.digits import add, subtract
from mull.tasks.families.family import Family, number_of_digits, worded
from mull.tasks.families.multiplication import SHAPES, multiplication_steps
from mull.tasks.task import Problem

_WORDINGS = ("What is {expression}?", "Calculate {expression}.", "Compute {expression}.")
_HARDEST = SHAPES.index((3, 3))


class ProductSum(Family):
    """Expressions such as `37 * 48 - 5`: a long multiplication, then a sum or difference that is
    never negative.

    Levels (digits of the factors): 0: 2x1, 1: 3x1, 2: 2x2, 3: 3x2, 4: 3x3; what is added has one to
    three digits. The product's lines, what is left to do, the columns of the sum: level 2 is about
    150 symbols.
    """

    name = "product_sum"
    hardest = _HARDEST

    def make(self, rng: random.Random, level: int) -> Problem:
        a, b = (number_of_digits(rng, digits) for digits in SHAPES[level])
        product = a * b
        c = number_of_digits(rng, rng.randint(1, 3))
        adds = c > product or rng.random() < 0.5
        answer = product + c if adds else product - c
        question = worded(_WORDINGS, expression=f"{a} * {b} {'+' if adds else '-'} {c}")
        width = len(str(answer if adds else product))
        last = (add if adds else subtract)(product, c, width)
        left = f"{multiplication_steps(a, b)} {'+' if adds else '-'}{c}"
        steps = f"{left}\n{last}\n{answer}"
        return self.problem(question, str(answer), level, steps)
