"""Long division with a remainder."""

from __future__ import annotations

import random
import re

from mull.tasks.families.digits import division_step, leading
from mull.tasks.families.family import Family, number_of_digits, worded
from mull.tasks.task import Problem, Verdict
from mull.tasks.verify import judge_text

_WORDINGS = (
    "What is {a} divided by {b}? Give quotient and remainder.",
    "Divide {a} by {b} with remainder.",
    "How often does {b} go into {a}, and what remains?",
)


class Division(Family):
    """Long division by one digit; the answer reads `1196 remainder 2`.

    Levels: the dividend has level + 2 digits, the divisor is 2 to 9. A line per digit of the
    quotient: the step, the quotient so far and the digits that are left, so that a line follows
    from the one before alone. Level 3 (five digits) is about 85 symbols.
    """

    name = "division"
    hardest = 14

    def make(self, rng: random.Random, level: int) -> Problem:
        a, b = number_of_digits(rng, level + 2), rng.randint(2, 9)
        answer = f"{a // b} remainder {a % b}"
        steps = f"{division_steps(a, b)}\n{answer}"
        return self.problem(worded(_WORDINGS, a=a, b=b), answer, level, steps)

    def verify(self, problem: Problem, text: str) -> Verdict:
        return judge_text(text, problem.answer, _short_form)


def division_steps(a: int, b: int) -> str:
    """A line `step quotient so far;digits left` for each digit of the quotient. What stays of a
    line has the same place in the next one."""
    lines = []
    quotient = ""
    remainder, left = leading(a, b)
    while True:
        quotient += str(remainder // b)
        lines.append(f"{division_step(remainder, b)} {quotient};{left}")
        remainder %= b
        if not left:
            return "\n".join(lines)
        remainder, left = remainder * 10 + int(left[0]), left[1:]


def _short_form(answer: str) -> str:
    """`12 R 3`, `12 remainder 3` and `12r3` are one answer."""
    spaced = re.sub(r"(\d)r(\d)", r"\1 r \2", answer.lower())
    return re.sub(r"\s*\b(?:remainder|r)\b\s*", " r ", spaced)
