"""What multi-token prediction does after a step: guess, only keep its keys, or sleep.

Its keys cost each step a layer more, and guesses the head once more. Where they have not been worth
that for a while, it sleeps and costs nothing; what is computed meanwhile lacks its keys, and nobody
guesses from there. It wakes to look again when far fewer sequences run, or after a long time.
"""

from __future__ import annotations

from typing import Literal

from mull.engine.guess_rates import GuessRates
from mull.engine.step_costs import StepCosts

Choice = Literal["guess", "follow", "sleep"]

# What guesses must promise: the estimates err, and a loss weighs more than a small gain.
LEAST_GAIN = 1.05
# In decode steps: refused so often one after the other it sleeps, for so long at first and at most.
# A look round costs as much as many steps: each in vain makes the next night twice as long.
_PATIENCE = 64
_NIGHT, _LONGEST_NIGHT = 2048, 65536
# At first, and when it has woken, it guesses until so many guesses have been compared with what was
# said, for so many steps at most; at every fourth of them further ones than pay.
_TRIAL, _LONGEST_TRIAL = 64, 64
_FURTHER_EVERY = 4
# What it costs to do without shows after one step of the same sequences, in a call of several.
_FIRST_LOOK = 4
# Refused, it guesses all the same every so many steps, so as to see when that would pay.
_PROBE_EVERY = 32
# Guesses for each, at most.
DEEPEST = 8


class MtpGate:
    def __init__(self) -> None:
        self.is_asleep = False
        self.is_probe = False
        self._refused = 0
        self._awake = 0
        self._slept = 0
        self._night = _NIGHT
        self._wakes_at = 0

    def choose(
        self,
        ends: int,
        costs: StepCosts,
        rates: GuessRates,
        *,
        is_decode: bool,
        steps: int = 1,
    ) -> Choice:
        """ends: how many sequences have just drawn; is_decode: and did nothing else. steps: how
        many are over since it was asked, more than one only if it said no guess."""
        if is_decode and self.is_asleep:
            self._slept += steps
            if self._slept >= self._night or ends <= self._wakes_at:
                self.is_asleep, self._refused, self._awake = False, 0, 0
                rates.forget()
                self._night = min(2 * self._night, _LONGEST_NIGHT)
        if self.is_asleep:
            return "sleep"
        self._awake += is_decode * steps
        if not costs.knows_calls and self._awake < _FIRST_LOOK:
            return "follow"
        if rates.judged < _TRIAL and self._awake <= _LONGEST_TRIAL:
            self.is_probe = self._awake % _FURTHER_EVERY == 0
            return "guess"
        self.is_probe = False
        if self.pays(ends, costs, rates):
            self._refused, self._night = 0, _NIGHT
            return "guess"
        if not is_decode:
            return "follow"
        self._refused += steps
        if self._refused >= _PATIENCE:
            self.is_asleep, self._slept, self._wakes_at = True, 0, ends // 2
        self.is_probe = self._refused % _PROBE_EVERY < steps
        return "guess" if self.is_probe else "follow"

    def pays(self, ends: int, costs: StepCosts, rates: GuessRates) -> bool:
        """Whether guessing now brings more tokens a second than doing without MTP at all.

        It has to be known before it is seen how sure the module will be: by how sure it mostly is.
        """
        if not ends:
            return False
        plain = costs.cost(ends)
        least = LEAST_GAIN * ends / costs.cost_in_a_call(ends)
        besides = costs.extra("fill") + costs.extra("guess")
        cost, expected = plain + besides, float(ends)
        dearer = costs.cost(2 * ends) - plain
        for share, rate in rates.profile():  # only the surest may be worth a row
            expected += ends * share * rate
            cost += share * dearer
            if expected >= least * cost:
                return True
        chance = rates.mean(0)
        for depth in range(1, DEEPEST):  # or several for each
            chance *= rates.mean(depth)
            besides += costs.extra("deepen")
            expected += ends * chance
            if expected >= least * (costs.cost((2 + depth) * ends) + besides):
                return True
        return False
