"""How far a drafter's guesses can be trusted: how often those it was so sure of came true.

A drafter is sure of its likeliest token by the probability it gives it. What that is worth depends
on the text, the temperature and how well it was trained, so it is counted, for a first guess and
for those that build on guesses apart.
"""

from __future__ import annotations

# Classes of sureness; a first guess, a second, and all further ones.
SURENESSES, DEPTHS = 8, 3
# What is believed at first, and how fast it is forgotten.
_FIRST_WEIGHT = 3.0
_MEMORY = 0.98
_HEAVY = 1e12


class GuessRates:
    """`kind` is a number for depth and sureness together."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Believe what was believed at first."""
        middles = [(place + 0.5) / SURENESSES for place in range(SURENESSES)]
        self._hits = [_FIRST_WEIGHT * middle for middle in middles] * DEPTHS
        self._tries = [_FIRST_WEIGHT] * len(self._hits)
        # How often each kind has been judged lately, among those of its depth.
        self._seen = [1.0] * len(self._hits)
        self._weight = [1.0] * DEPTHS  # of a guess of each depth that is judged now
        self.judged = 0

    def kind(self, depth: int, sureness: float) -> int:
        """depth: 0 for a first guess. sureness: from 0 to 1."""
        place = min(int(sureness * SURENESSES), SURENESSES - 1)
        return min(depth, DEPTHS - 1) * SURENESSES + place

    def rate(self, kind: int) -> float:
        return self._hits[kind] / self._tries[kind]

    def rates(self) -> list[float]:
        """Of all kinds."""
        return [hits / tries for hits, tries in zip(self._hits, self._tries, strict=True)]

    def judge(self, kind: int, is_hit: bool) -> None:
        self._hits[kind] = self._hits[kind] * _MEMORY + is_hit
        self._tries[kind] = self._tries[kind] * _MEMORY + 1.0
        self.judged += 1
        depth = kind // SURENESSES
        self._weight[depth] /= (
            _MEMORY  # only ratios are asked for: the new weigh more, not the old less
        )
        self._seen[kind] += self._weight[depth]
        if self._weight[depth] > _HEAVY:
            for other in self._kinds(depth):
                self._seen[other] /= _HEAVY
            self._weight[depth] /= _HEAVY

    def mean(self, depth: int) -> float:
        """How often a guess of this depth comes true, whatever its sureness turns out to be."""
        kinds = self._kinds(min(depth, DEPTHS - 1))
        seen = self._seen[kinds.start : kinds.stop]
        hits = sum(seen[i] * self._hits[k] / self._tries[k] for i, k in enumerate(kinds))
        return hits / sum(seen)

    def profile(self, depth: int = 0) -> list[tuple[float, float]]:
        """(share of all guesses of this depth, how often they come true), the likeliest first."""
        kinds = self._kinds(min(depth, DEPTHS - 1))
        total = sum(self._seen[kind] for kind in kinds)
        found = [(self._seen[kind] / total, self.rate(kind)) for kind in kinds]
        return sorted(found, key=lambda pair: -pair[1])

    def _kinds(self, depth: int) -> range:
        return range(depth * SURENESSES, (depth + 1) * SURENESSES)
