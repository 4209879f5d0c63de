"""Time of day and day of the week."""

from __future__ import annotations

import random

from mull.tasks.families.digits import divide
from mull.tasks.families.family import Family, number_of_digits, worded
from mull.tasks.task import Problem

_TIME = (
    "It is {start}. What time is it after {told}?",
    "A walk begins at {start} and takes {told}. When does it end?",
)
_DAY = (
    "Today is {day}. What day of the week is it {count} days from now?",
    "If today is {day}, which weekday is it in {count} days?",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class Clock(Family):
    """Durations added to a time of day, 24 hours, `HH:MM`.

    Levels: level + 1 durations of 0 to 9 hours and 1 to 59 minutes. Minutes, then hours with the
    carried hour, then the time so far: about 30 symbols a duration.
    """

    name = "clock"
    hardest = 7

    def make(self, rng: random.Random, level: int) -> Problem:
        hour, minute = rng.randrange(24), rng.randrange(60)
        start = f"{hour:02d}:{minute:02d}"
        spans = [(rng.randrange(10), rng.randint(1, 59)) for _ in range(level + 1)]
        lines = []
        for hours, minutes in spans:
            line, hour, minute = _add_span(hour, minute, hours, minutes)
            lines.append(line)
        told = " and then ".join(f"{hours} h {minutes} min" for hours, minutes in spans)
        answer = f"{hour:02d}:{minute:02d}"
        question = worded(_TIME, start=start, told=told)
        return self.problem(question, answer, level, "\n".join([*lines, answer]))


class Weekday(Family):
    """The day of the week some days later.

    Levels: the count of days has level + 1 digits. Long division by 7, then as many days as remain
    are named: level 2 is about 35 symbols.
    """

    name = "weekday"
    hardest = 9

    def make(self, rng: random.Random, level: int) -> Problem:
        today, count = rng.randrange(7), number_of_digits(rng, level + 1)
        passed = [_DAYS[(today + offset) % 7] for offset in range(count % 7 + 1)]
        steps = f"{divide(count, 7)}\n{' '.join(passed)}\n{passed[-1]}"
        question = worded(_DAY, day=_DAYS[today], count=count)
        return self.problem(question, passed[-1], level, steps)


def _add_span(hour: int, minute: int, hours: int, minutes: int) -> tuple[str, int, int]:
    """The line of one duration, and the time after it."""
    total = minute + minutes
    line = f"{minute:02d}+{minutes:02d}={total:02d}"
    carried, minute = divmod(total, 60)
    if carried:
        line += f" {total:02d}-60={minute:02d}"
    total = hour + hours + carried
    line += f" {hour:02d}+{hours}+{carried}={total:02d}"
    hour = total % 24
    if total >= 24:
        line += f" {total:02d}-24={hour:02d}"
    return f"{line} {hour:02d}:{minute:02d}", hour, minute
