"""What a run has cost so far, and the budget that ends it.

Energy is stated, not measured: seconds times the watts the recipe's machine says it draws. The
price is the machine's hourly one plus its energy.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mull.errors import RecipeError
from mull.train.recipe_parts import Machine

_JOULES_PER_KWH = 3.6e6
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass
class Spent:
    """seconds: of work that stands. repeated_seconds: of work that a stop or a kill made the run do
    again, or that nothing came of.
    flops: floating-point operations of training, as counted from shapes."""

    seconds: float = 0.0
    repeated_seconds: float = 0.0
    tokens_trained: int = 0
    tokens_sampled: int = 0
    flops: int = 0

    def __add__(self, other: Spent) -> Spent:
        mine, its = asdict(self), asdict(other)
        return Spent(**{name: mine[name] + its[name] for name in mine})


@dataclass
class Bill:
    """Seconds, tokens and FLOPs by stage. The clock runs from `start(stage)` to `stop()`; `tick`
    books the time since the last tick, so that everything between counts, saving included."""

    machine: Machine = field(default_factory=Machine)
    stages: dict[str, Spent] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    _stage: str | None = None
    _since: float = 0.0

    def start(self, stage: str) -> None:
        self.stop()
        self._stage, self._since = stage, self.clock()
        self.stages.setdefault(stage, Spent())

    def tick(self) -> None:
        if self._stage is not None:
            now = self.clock()
            self.stages[self._stage].seconds += now - self._since
            self._since = now

    def stop(self) -> None:
        self.tick()
        self._stage = None

    def add(
        self,
        stage: str,
        *,
        seconds: float = 0.0,
        repeated_seconds: float = 0.0,
        tokens_trained: int = 0,
        tokens_sampled: int = 0,
        flops: int = 0,
    ) -> None:
        """Book what the clock does not know; seconds only for work done while it stood still."""
        more = Spent(seconds, repeated_seconds, tokens_trained, tokens_sampled, flops)
        self.stages[stage] = self.stages.get(stage, Spent()) + more

    def repeat(self, later: Bill) -> None:
        """Book as repeated what each stage had spent by a later bill, of work that was lost."""
        for stage, spent in later.stages.items():
            mine = self.stages.get(stage, Spent())
            lost = spent.seconds + spent.repeated_seconds - mine.seconds - mine.repeated_seconds
            if lost > 0:
                self.add(stage, repeated_seconds=lost)

    def line(self, stage: str | None = None) -> dict[str, float]:
        """The bill of one stage, or of the run: what was spent, joules, kWh and dollars."""
        spent = sum(self.stages.values(), Spent()) if stage is None else self.stages[stage]
        seconds = spent.seconds + spent.repeated_seconds
        joules = seconds * self.machine.watts
        kwh = joules / _JOULES_PER_KWH
        dollars = seconds / 3600 * self.machine.dollars_per_hour
        dollars += kwh * self.machine.dollars_per_kwh
        return {**asdict(spent), "joules": joules, "kwh": kwh, "dollars": dollars}

    def to_dict(self) -> dict[str, Any]:
        """For checkpoints and the manifest: every stage's line and the total, as JSON."""
        self.tick()
        return {
            "machine": self.machine.model_dump(),
            "stages": {stage: self.line(stage) for stage in self.stages},
            "total": self.line(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], machine: Machine | None = None) -> Bill:
        """Carry a bill on; `machine` overrides the one it was written with."""
        names = Spent.__dataclass_fields__
        stages = {
            stage: Spent(**{name: line[name] for name in names})
            for stage, line in values["stages"].items()
        }
        return cls(machine or Machine.model_validate(values["machine"]), stages)


@dataclass(frozen=True)
class Budget:
    """A limit of seconds or of dollars, on a whole run (resumes included) or on one stage."""

    limit: float
    unit: str  # "seconds" or "dollars"
    text: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From "90s", "20m", "1.5h" or "$2". Raises RecipeError."""
        match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)([smh])|\$(\d+(?:\.\d+)?))", text.strip(), re.A)
        if match is None:
            raise RecipeError(f"budget {text!r}: write it as 90s, 20m, 1.5h or $2")
        amount, unit, dollars = match.groups()
        limit = float(dollars) if dollars else float(amount) * _SECONDS[unit]
        if not 0 < limit < float("inf"):
            raise RecipeError(f"budget {text!r}: nothing can be done with it")
        return cls(limit, "dollars" if dollars else "seconds", text.strip())

    def check(self, machine: Machine) -> None:
        """RecipeError for dollars on a machine that costs none: the budget would never end."""
        costs = machine.dollars_per_hour + machine.watts * machine.dollars_per_kwh
        if self.unit == "dollars" and not costs:
            raise RecipeError(
                f"budget {self.text}: the machine costs nothing, so it would never be spent; "
                "set machine.dollars_per_hour, or machine.watts and machine.dollars_per_kwh"
            )

    def share(self, bill: Bill, stage: str | None = None) -> float:
        """How much of it is spent: 0 nothing, 1 all."""
        bill.tick()
        if stage is not None and stage not in bill.stages:
            return 0.0
        line = bill.line(stage)
        spent = line["dollars"]
        if self.unit == "seconds":
            spent = line["seconds"] + line["repeated_seconds"]
        return spent / self.limit

    def is_spent(self, bill: Bill, stage: str | None = None) -> bool:
        return self.share(bill, stage) >= 1.0
