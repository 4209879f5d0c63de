"""Which questions reinforcement learning asks: more often those that still teach something.

A group whose answers are all right, or all wrong, has no advantages, and late in a run most groups
are dead in this way. Whether one will be is mostly a matter of its kind, a family at a level: so
the row of questions is thinned, and the kinds that lately gave dead groups are passed over (the
idea of dynamic sampling, arXiv 2503.14476, before the answers are paid for instead of after).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mull.tasks import Problem
from mull.train.problems import Questions

# What a kind's groups so far count at each new one: it remembers about twenty.
_MEMORY = 0.95


@dataclass(frozen=True)
class Asked:
    """chance: of being asked at all; 1 over it weighs the question where the row is meant."""

    problem: Problem
    chance: float


class FocusedQuestions:
    """Questions of `row`, each passed over with a chance of up to `focus` (0: none ever is).

    The chance is `focus` times how much smaller the share of live groups of its kind is than that
    of the kind with most. A kind that was never asked counts as live. seed: of what is passed over.
    """

    def __init__(
        self, row: Questions, focus: float, seed: int, kinds: Mapping[str, Sequence[float]]
    ) -> None:
        self._row, self._focus, self._seed = row, focus, seed
        # Of each kind (groups that were live, groups), both fading.
        self._kinds = {kind: (float(live), float(groups)) for kind, (live, groups) in kinds.items()}

    def take(self, count: int) -> list[Asked]:
        most = max(map(self._live, self._kinds), default=1.0)
        found: list[Asked] = []
        while len(found) < count:
            draw = random.Random(f"{self._seed}/{self._row.position}").random()
            (problem,) = self._row.take(1)
            live = min(1.0, self._live(_kind(problem)) / most)
            chance = 1 - self._focus * (1 - live)
            if draw < chance:
                found.append(Asked(problem, chance))
        return found

    def saw(self, problem: Problem, *, is_live: bool) -> None:
        live, groups = self._kinds.get(_kind(problem), (0.0, 0.0))
        self._kinds[_kind(problem)] = (live * _MEMORY + is_live, groups * _MEMORY + 1)

    def state(self) -> dict[str, Any]:
        """As JSON: how many of the row were taken, and what is known of the kinds."""
        return {"asked": self._row.position, "kinds": {k: list(v) for k, v in self._kinds.items()}}

    def _live(self, kind: str) -> float:
        live, groups = self._kinds.get(kind, (0.0, 0.0))
        return (live + 1) / (groups + 1)


def _kind(problem: Problem) -> str:
    return f"{problem.family}/{problem.level}"
