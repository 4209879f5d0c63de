"""What all families share: levels, one wording per question, problems of one split.

A family makes endless problems of one kind with a chain of thought that a program wrote. The chains
are meant for models of one to four million parameters: every step is a local operation (one or two
digits and a carry), and a harder level has more steps of the same kind.
"""

from __future__ import annotations

import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from mull.errors import TaskError
from mull.tasks.task import Problem, Split, Verdict
from mull.tasks.verify import judge

# Without one new question of the wanted split in so many draws the settings leave none to find.
_MAX_DRAWS = 10_000


class Family(ABC):
    """Base of all families. levels: the lowest and the highest difficulty drawn, both included.

    Subclasses set `name`, `hardest` (the highest level that makes sense) and `make`.
    """

    name: str
    hardest: int

    def __init__(self, levels: Sequence[int] | int = (0, 1)) -> None:
        low, high = (levels, levels) if isinstance(levels, int) else _pair(self.name, levels)
        if not 0 <= low <= high <= self.hardest:
            raise TaskError(
                f"task {self.name}: levels {low} to {high} do not lie within 0 to {self.hardest}"
            )
        self.levels = (low, high)

    @abstractmethod
    def make(self, rng: random.Random, level: int) -> Problem:
        """One problem of that level."""

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """Endless; a level is drawn evenly for each problem."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        misses = 0
        while misses < _MAX_DRAWS:
            problem = self.make(rng, rng.randint(*self.levels))
            if problem.split == split:
                misses = 0
                yield problem
            else:
                misses += 1
        raise TaskError(
            f"task {self.name}: levels {self.levels[0]} to {self.levels[1]} have no question in "
            f"the {split} split; take a higher level"
        )

    def verify(self, problem: Problem, text: str) -> Verdict:
        return judge(text, problem.answer)

    def problem(self, question: str, answer: str, level: int, steps: str, **data: Any) -> Problem:
        return Problem(question, answer, self.name, level, steps, data)


def worded(wordings: Sequence[str], **parts: object) -> str:
    """One of the wordings, chosen by the parts themselves: a question has one wording only, so that
    its twin in other words cannot sit in another split."""
    key = "|".join(f"{name}={part}" for name, part in sorted(parts.items()))
    return wordings[zlib.crc32(key.encode()) % len(wordings)].format(**parts)


def number_of_digits(rng: random.Random, digits: int) -> int:
    """A number with exactly so many digits; one digit means 1 to 9."""
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _pair(name: str, levels: Sequence[int]) -> tuple[int, int]:
    if len(levels) != 2 or not all(isinstance(level, int) for level in levels):
        raise TaskError(f"task {name}: levels must be one number or [lowest, highest]: {levels!r}")
    return levels[0], levels[1]
