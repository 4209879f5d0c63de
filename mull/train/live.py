"""What a run shows while it trains: a page on a terminal, a line now and then elsewhere.

Everything goes to stderr, and nothing that goes wrong there ends a run: a closed pipe is silence.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mull.harmless import one_line
from mull.train.bill import Bill, Budget
from mull.train.figures import NONE, count, dollars, duration, energy, number, percent, plain

_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_BARS = "_.-~=+*#"
_REMEMBERED = 48  # rewards in the sparkline, step times in the estimate
_REFRESH_SECONDS = 0.2
_ROOM = {"question": 240, "thinking": 700, "answer": 240}  # characters of a sample shown
_RESULT_STYLES = {"correct": "green", "wrong": "red", "verifier_failed": "bold red"}


@dataclass(frozen=True)
class StagePlan:
    """steps: how many it will take, None where that is not known beforehand."""

    name: str
    kind: str
    steps: int | None = None


@dataclass
class _State:
    """What is on the page: the newest record and sample, and a few figures of the steps before."""

    plans: Sequence[StagePlan]
    index: int = 0
    step: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    sample: Mapping[str, Any] | None = None
    rewards: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    @property
    def plan(self) -> StagePlan:
        return self.plans[self.index]

    def begin(self, index: int) -> None:
        self.index, self.step, self.values, self.timing = index, 0, {}, {}
        self.rewards.clear()
        self.seconds.clear()

    def take(self, record: Mapping[str, Any]) -> None:
        self.step = int(record["step"])
        self.values, self.timing = dict(record["values"]), dict(record.get("time") or {})
        reward = number(self.values.get("reward", self.values.get("loss")))
        if reward is not None:
            self.rewards.append(reward)
        if (seconds := number(self.timing.get("seconds"))) is not None:
            self.seconds.append(seconds)

    def seconds_left(self) -> float | None:
        """Of this stage, from the median of its last steps."""
        if self.plan.steps is None or not self.seconds:
            return None
        return max(0, self.plan.steps - self.step) * statistics.median(self.seconds)


class PageConsole(Console):
    """rich's own console ends the program when its pipe is closed; a run must go on."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class LivePage:
    """Shows a run; a context manager around its stages.

    gap_alarm: rollout/trainer log-probability gap shown in alarm. every: steps between two lines
    where there is no terminal.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[StagePlan],
        bill: Bill,
        *,
        budget: Budget | None = None,
        gap_alarm: float = 0.1,
        every: int = 10,
        console: PageConsole | None = None,
    ) -> None:
        self._name = name
        self._state = _State(stages)
        self._bill = bill
        self._budget = budget
        self._gap_alarm = gap_alarm
        self._every = every
        self._console = console or PageConsole(stderr=True, highlight=False)
        self._has_page = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._drawn_at = 0.0
        self._is_silent = False

    def __enter__(self) -> LivePage:
        if self._has_page:
            # No refreshing thread: the page changes when a step does.
            self._live = Live(console=self._console, auto_refresh=False)
            self._guarded(self._live.start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._draw(at_once=True)
            self._guarded(self._live.stop)
            self._live = None

    def stage(self, name: str, steps: int | None = None) -> None:
        """The stage called `name` begins, or is gone on with; `steps` replaces the planned ones."""
        names = [plan.name for plan in self._state.plans]
        self._state.begin(names.index(name))
        if steps is not None:
            plans = list(self._state.plans)
            plans[self._state.index] = StagePlan(name, self._state.plan.kind, steps)
            self._state.plans = plans
        if self._has_page:
            self._draw(at_once=True)
        else:
            self._line(f"{self._title()} begins")

    def step(self, record: Mapping[str, Any]) -> None:
        """A step record, as `Metrics.step` returns it."""
        self._state.take(record)
        if self._has_page:
            self._draw()
        elif self._state.step % self._every == 0 or self._state.step in (1, self._state.plan.steps):
            self._line(self._summary())

    def sample(self, sample: Mapping[str, Any]) -> None:
        """An answer to show beside the figures (mull.train.metrics.Sample)."""
        self._state.sample = sample
        if self._has_page:
            self._draw()

    def note(self, text: str) -> None:
        """A remark that stays: above the page, or a line of its own."""
        self._line(one_line(text))

    def _line(self, text: str) -> None:
        self._guarded(
            lambda: self._console.print(Text(text), soft_wrap=True, markup=False, highlight=False)
        )

    def _draw(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        live = self._live
        if live is None or (not at_once and now - self._drawn_at < _REFRESH_SECONDS):
            return
        self._drawn_at = now
        self._guarded(lambda: live.update(self._page(), refresh=True))

    def _guarded(self, show: Any) -> None:
        """Show, unless nobody can be shown anything any more: training goes on regardless."""
        if self._is_silent:
            return
        try:
            show()
        except (OSError, ValueError):  # a closed pipe or file; ValueError: text it cannot encode
            self._is_silent = True

    def _title(self) -> str:
        state = self._state
        kind = "" if state.plan.kind == state.plan.name else f" ({state.plan.kind})"
        return f"stage {state.index + 1} of {len(state.plans)}: {state.plan.name}{kind}"

    def _progress(self) -> str:
        steps = self._state.plan.steps
        return f"step {self._state.step:,}" + ("" if steps is None else f" of {steps:,}")

    def _gap(self) -> tuple[str, bool]:
        gap = number(self._state.values.get("gap"))
        return plain(gap), gap is not None and gap > self._gap_alarm

    def _figures(self) -> list[tuple[str, str]]:
        """What the newest step measured; what its kind of stage does not have is left out."""
        values, timing = self._state.values, self._state.timing
        gap, _is_alarm = self._gap()
        shown = [
            ("loss", "" if "reward" in values else plain(number(values.get("loss")))),
            ("validation loss", plain(number(values.get("validation_loss")))),
            ("reward", plain(number(values.get("reward")))),
            ("pass@1", percent(number(values.get("pass_at_1")))),
            ("answer length", plain(number(values.get("length")))),
            ("dead groups", percent(number(values.get("dead_groups")), 0)),
            ("entropy", plain(number(values.get("entropy")))),
            ("gap", gap),
            ("rollout", f"{count(number(timing.get('rollout_tokens_per_s')))} tok/s"),
            ("update", f"{count(number(timing.get('update_tokens_per_s')))} tok/s"),
            ("of peak", percent(number(timing.get("utilisation")), 0)),
        ]
        # Loss says little in RL, where it hovers around zero: the reward stands in its place.
        return [(name, text) for name, text in shown if text and not text.startswith(NONE)]

    def _cost(self) -> str:
        self._bill.tick()
        line = self._bill.line()
        seconds = line["seconds"] + line["repeated_seconds"]
        spent = f"{duration(seconds)} · {energy(line['joules'])} · {dollars(line['dollars'])}"
        if self._budget is None:
            return spent
        return f"{spent} · {percent(self._budget.share(self._bill), 0)} of {self._budget.text}"

    def _summary(self) -> str:
        """One line for a log."""
        figures = " · ".join(f"{name} {text}" for name, text in self._figures())
        alarm = f" · GAP ABOVE {plain(self._gap_alarm)}" if self._gap()[1] else ""
        left = self._state.seconds_left()
        left_text = "" if left is None else f" · {duration(left)} left"
        return (
            f"{self._state.plan.name} {self._progress()} · {figures}{alarm} "
            f"| {self._cost()}{left_text}"
        )

    def _page(self) -> RenderableType:
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        head.add_row(Text(f"mull train · {one_line(self._name)}", "bold"), Text(self._title()))
        left = self._state.seconds_left()
        left_text = "" if left is None else f"about {duration(left)} left in this stage"
        head.add_row(Text(self._progress() + "  " + self._bar()), Text(left_text, "dim"))
        figures = Table.grid(padding=(0, 2))
        for _ in range(6):
            figures.add_column()
        cells = [self._cell(name, text) for name, text in self._figures()]
        for at in range(0, len(cells), 3):
            figures.add_row(*(part for cell in cells[at : at + 3] for part in cell))
        lines = Table.grid(padding=(0, 2))
        lines.add_column(width=10)
        lines.add_column(overflow="fold")
        what = "reward" if "reward" in self._state.values else "loss"
        lines.add_row(Text(what, "dim"), Text(self._sparkline()))
        lines.add_row(Text("bill", "dim"), Text(self._cost()))
        for name, text in self._sample_rows():
            lines.add_row(Text(name, "dim"), text)
        return Group(head, figures, lines)

    def _cell(self, name: str, text: str) -> tuple[Text, Text]:
        is_alarm = name == "gap" and self._gap()[1]
        shown = Text(text, "bold white on red" if is_alarm else "bold")
        return Text(name, "dim"), shown.append(" !" if is_alarm else "")

    def _bar(self) -> str:
        steps = self._state.plan.steps
        if not steps:
            return ""
        done = min(24, 24 * self._state.step // steps)
        full, empty = ("━", "╌") if self._is_unicode() else ("#", ".")
        return full * done + empty * (24 - done)

    def _sparkline(self) -> str:
        return sparkline(self._state.rewards, _BARS if self._is_unicode() else _PLAIN_BARS)

    def _is_unicode(self) -> bool:
        return self._console.encoding.lower().startswith("utf")

    def _sample_rows(self) -> list[tuple[str, Text]]:
        sample = self._state.sample
        if sample is None:
            return []
        rows = []
        for name, room in _ROOM.items():
            words = one_line(str(sample.get(name, "")))
            # Of the thinking its end: what it came to.
            cut = words if len(words) <= room else f"… {words[-room:]}"
            if name != "thinking" and len(words) > room:
                cut = f"{words[:room]} …"
            rows.append((name, Text(cut, "dim" if name == "thinking" else "")))
        verdict = str(sample.get("verdict", ""))
        rows[-1][1].append(f"  {one_line(verdict)}", _RESULT_STYLES.get(verdict, "yellow"))
        return rows


def sparkline(values: Sequence[float] | deque[float], bars: str = _BARS) -> str:
    """One character per value, lowest to highest of them."""
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(bars[round((value - low) / span * (len(bars) - 1))] for value in values)
