"""How long a step takes by its number of rows, learnt from the steps themselves.

Only ratios are asked for, so that a machine which is slower for a while, or longer contexts, change
nothing: what all sizes share goes into one common factor, which is forgotten fast.
"""

from __future__ import annotations

# Steps of about the same number of rows share an entry: exactly up to 16, then by eighths.
_SIZES = [*range(1, 17), *(round(2 ** (n / 3)) for n in range(13, 31))]
# Reading the weights costs as much as computing this many rows: a guess, until steps are seen.
_ROWS_FOR_THE_WEIGHTS = 6.0
_LEAST_WEIGHT = 0.05
# What a step does besides: more than was known may be chance or a first call, less is believed.
_WEIGHT_OF_MORE, _WEIGHT_OF_LESS = 0.05, 0.5
# Steps in calls of guesses are told without what Python does around them, so these may be dearer.
_WEIGHT_OF_CALLS, _MOST_IN_A_CALL = 0.2, 4.0
# From nothing an extra could not double.
_LEAST_EXTRA_S = 1e-7
# An entry not used for so many steps is open to surprise again.
_FORGET_AFTER = 500


class StepCosts:
    def __init__(self) -> None:
        self._entry = [0] * (_SIZES[-1] + 1)
        entry = 0
        for rows in range(1, len(self._entry)):
            while entry + 1 < len(_SIZES) and _SIZES[entry + 1] <= rows:
                entry += 1
            self._entry[rows] = entry
        self._factor = [1.0] * len(_SIZES)
        self._seen = [0] * len(_SIZES)
        self._last_used = [0] * len(_SIZES)
        self._nearest = list(range(len(_SIZES)))
        self._common = 0.0
        self._in_a_call: dict[int, float] = {}
        self._extras: dict[str, float] = {}
        self._steps = 0

    def cost(self, rows: int) -> float:
        """In a unit of its own; sizes not seen yet cost what their nearest seen one suggests."""
        entry = self._entry[rows] if rows < len(self._entry) else len(_SIZES) - 1
        return (_ROWS_FOR_THE_WEIGHTS + rows) * self._factor[self._nearest[entry]]

    def cost_in_a_call(self, rows: int) -> float:
        """Of one of several steps in one call (DecodeLoop), where nobody guesses."""
        if not self._in_a_call:
            return self.cost(rows)
        entry = self._entry[rows] if rows < len(self._entry) else len(_SIZES) - 1
        nearest = min(self._in_a_call, key=lambda other: abs(other - entry))
        return self.cost(rows) * self._in_a_call[nearest]

    @property
    def knows_calls(self) -> bool:
        return bool(self._in_a_call)

    def observe_in_a_call(self, rows: int, seconds: float) -> None:
        """seconds: of each of several steps in one call."""
        if not self._common:
            return  # no step seen to compare it with
        entry = self._entry[rows] if rows < len(self._entry) else len(_SIZES) - 1
        share = min(seconds / (self._common * self.cost(rows)), _MOST_IN_A_CALL)
        known = self._in_a_call.setdefault(entry, share)
        self._in_a_call[entry] = known + _WEIGHT_OF_CALLS * (share - known)

    def observe(self, rows: int, seconds: float) -> None:
        entry = self._entry[rows] if rows < len(self._entry) else len(_SIZES) - 1
        self._steps += 1
        if not self._common:
            self._common = seconds / (_ROWS_FOR_THE_WEIGHTS + rows)
        # One step in which the machine did something else must not count for many.
        ratio = min(max(seconds / (self._common * self.cost(rows)), 0.5), 2.0)
        self._common *= 1 + 0.1 * (ratio - 1)
        if not self._seen[entry]:
            self._factor[entry] = self._factor[self._nearest[entry]]
        self._seen[entry] += 1
        weight = max(_LEAST_WEIGHT, 0.5 / self._seen[entry])
        self._factor[entry] *= 1 + weight * (ratio - 1)
        self._last_used[entry] = self._steps
        if self._seen[entry] == 1 or self._steps % _FORGET_AFTER == 0:
            self._find_nearest()

    def extra(self, what: str) -> float:
        """Cost of what is done beside the step itself, in the same unit; 0 until it is seen."""
        return self._extras.get(what, 0.0)

    def observe_extra(self, what: str, seconds: float) -> None:
        if not self._common:
            return  # no step seen to compare it with
        cost = max(seconds, _LEAST_EXTRA_S) / self._common
        known = self._extras.setdefault(what, cost)
        weight = _WEIGHT_OF_MORE if cost > known else _WEIGHT_OF_LESS
        self._extras[what] = known + weight * (min(cost, 2 * known) - known)

    def _find_nearest(self) -> None:
        for entry, last in enumerate(self._last_used):
            if self._steps - last >= _FORGET_AFTER:
                self._seen[entry] = 0
        known = [entry for entry, seen in enumerate(self._seen) if seen]
        for entry in range(len(_SIZES)):
            self._nearest[entry] = min(known, key=lambda other: abs(other - entry))
