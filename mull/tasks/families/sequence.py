"""The next number of a sequence."""

from __future__ import annotations

import random

from mull.tasks.families.family import Family, worded
from mull.tasks.task import Problem

_WORDINGS = (
    "What is the next number: {terms}, ...?",
    "Continue the sequence {terms} with one number.",
)


class NumberSequence(Family):
    """A sequence whose differences (level 0), differences of differences (1) or third differences
    (2) are constant and not negative; level + 4 terms, all below 1000.

    A line per row of differences, then the next term of each row from the last row up.
    """

    name = "sequence"
    hardest = 3

    def make(self, rng: random.Random, level: int) -> Problem:
        firsts = [rng.randint(1, 9 if index else 30) for index in range(level + 2)]
        rows = _rows(firsts, level + 5)
        shown = [row[: len(row) - 1] for row in rows]
        lines = [" ".join(map(str, row)) for row in shown[1:]]
        following = rows[-1][-1]
        for row in reversed(shown[:-1]):
            lines.append(f"{row[-1]}+{following}={row[-1] + following}")
            following += row[-1]
        question = worded(_WORDINGS, terms=", ".join(map(str, shown[0])))
        steps = "\n".join([*lines, str(following)])
        return self.problem(question, str(following), level, steps)


def _rows(firsts: list[int], length: int) -> list[list[int]]:
    """The sequence and its rows of differences; firsts: the first number of every row, the last row
    being constant."""
    rows = [[firsts[-1]] * (length - len(firsts) + 1)]
    for first in reversed(firsts[:-1]):
        row = [first]
        for difference in rows[0]:
            row.append(row[-1] + difference)
        rows.insert(0, row)
    return rows
