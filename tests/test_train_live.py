"""The live page: figures and alarms on a terminal, lines elsewhere, and never a crash."""

from __future__ import annotations

import io
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.train.bill import Bill, Budget
from mull.train.figures import count, dollars, duration, energy, number, plain
from mull.train.live import LivePage, PageConsole, StagePlan, sparkline
from mull.train.recipe_parts import Machine

PLANS = [StagePlan("base", "pretrain", 40), StagePlan("zero", "rl", 30), StagePlan("last", "eval")]
HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]x[/red] [/] [link=a]\u202e\ud800\x00\r\n\t🧠\U000e0041"


def rl_step(step: int, **values: object) -> dict[str, object]:
    figures = {"reward": 0.1 + step / 60, "pass_at_1": step / 40, "length": 143.0, "gap": 0.002}
    figures |= {"dead_groups": 0.25, "entropy": 0.4, "loss": 0.001, **values}
    timing = {"seconds": 2.0, "rollout_tokens_per_s": 23100.0, "utilisation": 0.61}
    return {"step": step, "values": figures, "time": timing}


def page_on(file: io.StringIO | io.TextIOWrapper, *, terminal: bool, width: int = 100) -> LivePage:
    console = PageConsole(file=file, force_terminal=terminal, width=width, height=50, no_color=True)
    bill = Bill(Machine(watts=100, dollars_per_hour=1))
    bill.add("zero", seconds=3600)
    return LivePage("nano", PLANS, bill, budget=Budget.parse("2h"), console=console)


def shown(text: str) -> str:
    """What is left on the screen: the last page, without our own escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_gets_a_page_with_every_figure() -> None:
    file = io.StringIO()
    with page_on(file, terminal=True) as page:
        page.stage("zero")
        for step in range(1, 16):
            page.step(rl_step(step))
        page.sample({"question": "2+2", "thinking": "two", "answer": "4", "verdict": "correct"})
    text = shown(file.getvalue())
    for figure in ("stage 2 of 3: zero (rl)", "step 15 of 30", "37.5 %", "143", "25 %", "0.4",
                   "0.002", "23.1 k tok/s", "61 %", "1 h 00 min", "360.0 kJ", "$1.03",
                   "50 % of 2h", "about 30 s left", "▁", "█", "2+2", "correct"):  # fmt: skip
        assert figure in text, figure
    assert "0.002 !" not in text


def test_a_gap_beyond_the_alarm_is_marked() -> None:
    for terminal, mark in ((True, "0.31 !"), (False, "GAP ABOVE 0.1")):
        file = io.StringIO()
        with page_on(file, terminal=terminal) as page:
            page.stage("zero")
            page.step(rl_step(1, gap=0.31))
        assert mark in shown(file.getvalue())


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    file = io.StringIO()
    with page_on(file, terminal=False) as page:
        page.stage("zero")
        for step in range(1, 31):
            page.step(rl_step(step))
        page.note("checkpoint\nsaved")
    lines = file.getvalue().splitlines()
    assert "\x1b" not in file.getvalue()
    steps = [line.split(" of ")[0] for line in lines[1:-1]]
    assert steps == ["zero step 1", "zero step 10", "zero step 20", "zero step 30"]
    assert lines[-1] == "checkpoint saved"
    assert "reward 0.433" in lines[3]
    assert "1 h 00 min" in lines[3]


def test_a_learning_stage_shows_its_loss() -> None:
    file = io.StringIO()
    with page_on(file, terminal=False) as page:
        page.stage("base", steps=1)
        page.step({"step": 1, "values": {"loss": torch.tensor(2.5)}, "time": {}})
    assert "base step 1 of 1 · loss 2.5 |" in file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [1, 20, 120])
def test_hostile_text_neither_acts_nor_crashes(terminal: bool, width: int) -> None:
    file = io.StringIO()
    with page_on(file, terminal=terminal, width=width) as page:
        page.stage("zero")
        page.step(rl_step(1, reward=float("nan"), gap=None, entropy="?", length=1e300))
        page.sample({"question": HOSTILE, "thinking": HOSTILE * 500, "answer": HOSTILE,
                     "verdict": HOSTILE})  # fmt: skip
        page.note(HOSTILE)
    text = file.getvalue()
    for forbidden in ("\x1b[2J", "\x1b]", "\x07", "\u202e", "\x00", "\ud800"):
        assert forbidden not in text
    if width == 120:
        assert "[red]x[/red]" in text  # said, not obeyed


@given(st.text(max_size=60), st.floats() | st.none() | st.integers() | st.text(max_size=3))
@settings(max_examples=60, deadline=None)
def test_no_text_and_no_figure_crashes_the_page(text: str, value: object) -> None:
    with page_on(io.StringIO(), terminal=True, width=40) as page:
        page.stage("zero")
        page.step(rl_step(1, reward=value, gap=value, length=value))
        page.sample({"question": text, "thinking": text, "answer": text, "verdict": text})


def test_a_terminal_without_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace", write_through=True)
    with page_on(file, terminal=True) as page:
        page.stage("zero")
        for step in range(1, 5):
            page.step(rl_step(step))
    assert b"###" in raw.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_closed_pipe_does_not_end_the_run(terminal: bool) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with page_on(Closed(), terminal=terminal) as page:
        page.stage("zero")
        page.step(rl_step(1))
        page.note("still here")


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert sparkline([0.0, 1.0, 0.5]) == "▁█▅"


def test_figures_are_readable() -> None:
    assert [plain(v) for v in (0.0, 143.2, 0.4321, 0.00234, 3.0, 1e-9)] == [
        "0", "143", "0.432", "0.00234", "3", "1.00e-09",
    ]  # fmt: skip
    assert [count(v) for v in (None, 12.0, 23100, 4.2e6, 3e15)] == [
        "–", "12", "23.1 k", "4.2 M", "3.0 P",
    ]  # fmt: skip
    assert [duration(v) for v in (1.25, 59.7, 61, 7200)] == [
        "1.2 s", "1 min 00 s", "1 min 01 s", "2 h 00 min",
    ]  # fmt: skip
    assert (energy(360_000), dollars(0.0029), dollars(12.5)) == ("360.0 kJ", "$0.0029", "$12.50")
    assert number(float("inf")) is number("3") is number(torch.ones(2)) is number(True) is None
