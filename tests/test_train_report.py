"""The report: whole from partial runs, nothing hostile in it, huge runs thinned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.train.bill import Bill
from mull.train.charts import line_chart, thinned, ticks
from mull.train.metrics import Metrics, Sample
from mull.train.recipe import Recipe
from mull.train.report import write_report
from mull.train.run_folder import ANSWERS, RunFolder

FULL = """
import resource, sys
from pathlib import Path
from mull.errors import TrainError
from mull.train.report import write_report
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_report(Path(sys.argv[1]))
except TrainError as error:
    print(error)
"""
HOSTILE = "</pre></style><script>alert(1)</script><img src=x onerror=alert(2)>\"' &\x1b\u202e\ud800"
STAGES = [
    {"name": "base", "kind": "pretrain", "steps": 5, "data": [{"task": "t"}]},
    {"name": "zero", "kind": "rl", "steps": 5, "task": "t"},
    {"name": "exam", "kind": "eval", "tasks": ["t"]},
]
VOID = {"meta", "line", "polygon", "polyline", "circle", "img", "br", "link"}


class Page(HTMLParser):
    """Tags, texts and attributes of a page; an assertion fails when a tag is not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _attributes in self.tags)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def run_at(path: Path, **changes: Any) -> RunFolder:
    values = {"name": "tiny", "model": {"depth": 2}, "stages": STAGES}
    values["tasks"] = {"t": {"families": {"sums": {}}}}
    return RunFolder.start(path, Recipe.model_validate({**values, **changes}))


def rl_values(step: int) -> dict[str, float]:
    return {"loss": 0.01, "reward": step / 5, "pass_at_1": step / 10, "length": 90.0 + step,
            "entropy": 0.5, "gap": 0.001, "dead_groups": 0.2}  # fmt: skip


def sample(stage: str, **changes: Any) -> Sample:
    values: Sample = {"stage": stage, "step": 3, "question": "What is 6 * 7?", "thinking": "six...",
                      "answer": "42", "verdict": "correct", "reward": 1.0, "tokens": 9}  # fmt: skip
    return {**values, **changes}  # type: ignore[typeddict-item]


def fill(run: RunFolder) -> None:
    metrics, bill = Metrics(run.metrics, run.samples), Bill()
    for step in range(1, 6):
        metrics.step("base", "pretrain", step, {"loss": 3.0 / step}, {"seconds": 2.0})
    bill.add("base", seconds=11.0, tokens_trained=5000, flops=10**12)
    metrics.stage_end("base", "pretrain", 5, bill.line("base"))
    for step in range(1, 6):
        metrics.step("zero", "rl", step, rl_values(step), {"seconds": 3.0})
    bill.add("zero", seconds=17.0, repeated_seconds=4.0)
    for stage, score in (("base", 0.25), ("zero", 0.875)):
        for ood in (False, True):
            metrics.evaluation(stage, "t", "sums", problems=1000, k=2, stderr=0.012, greedy=0.9,
                               pass_at_1=score - 0.125 * ood, tokens=101, ood=ood)  # fmt: skip
        metrics.sample(sample(stage, answer=f"says {stage}"))
    run.update_manifest(bill=bill.to_dict(), status="done")


def test_a_report_tells_the_whole_run(tmp_path: Path) -> None:
    with run_at(tmp_path / "run") as run:
        fill(run)
    page = Page(write_report(tmp_path / "run"))
    for words in ("tiny", "finished", "87.5 %", "from 25.0 % (base)", "25.0 ±1.2", "greedy 90.0",
                  "75.0", "Out of distribution", "says base", "says zero", "six...", "all",
                  "32 s", "960 J", "1.0 T", "How it learnt", "1,000 problems"):  # fmt: skip
        assert words in page.words, words
    assert page.count("svg") == 8


def test_the_answers_of_a_teacher_are_on_the_bill_once(tmp_path: Path) -> None:
    values = {"name": "taught", "kind": "distill", "teacher": "zero", "task": "t", "steps": 5}
    with run_at(tmp_path / "run", stages=[*STAGES[:2], values]) as run:
        metrics, bill = Metrics(run.metrics, run.samples), Bill()
        metrics.step("taught" + ANSWERS, "distill", 64, {"length": 9.0}, {"seconds": 30.0})
        metrics.step("taught", "distill", 1, {"loss": 1.0}, {"seconds": 2.0})
        bill.add("taught", seconds=33.0)
        run.update_manifest(bill=bill.to_dict())
    page = Page(write_report(tmp_path / "run"))
    assert "A training run of 3 stages" in page.words
    assert "time 33 s" in page.words


def test_two_eval_stages_have_a_table_each(tmp_path: Path) -> None:
    values: dict[str, Any] = {"problems": 9, "k": 2, "stderr": 0.0}
    with run_at(tmp_path / "run") as run:
        metrics = Metrics(run.metrics, run.samples)
        for stage, score in (("base", 0.25), ("zero", 0.875)):
            metrics.evaluation(stage, "t", "sums", by="exam", pass_at_1=score, **values)
        metrics.evaluation("base", "t", "sums", by="direct", pass_at_1=0.375, thinking="off",
                           sampling={"temperature": 1.0, "max_tokens": 48}, **values)  # fmt: skip
    page = Page(write_report(tmp_path / "run"))
    assert sum(attributes.get("class") == "stages" for _tag, attributes in page.tags) == 2
    for words in ("25.0 ±0.0", "37.5 ±0.0", "87.5 %", "from 25.0 % (base)", "exam: 9 problems",
                  "direct: 9 problems per family, 2 sampled answers to each, without thinking, of "
                  "at most 48 tokens at temperature 1"):  # fmt: skip
        assert words in page.words, words


def test_a_report_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    with run_at(tmp_path / "run") as run:
        fill(run)
    page = Page(write_report(tmp_path / "run"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    for _tag, attributes in page.tags:
        assert not {"src", "href", "onload", "onclick", "onerror"} & attributes.keys()
    style = (tmp_path / "run" / "report.html").read_text()
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in style


def test_curves_are_named_described_and_shown_as_tables_too(tmp_path: Path) -> None:
    with run_at(tmp_path / "run") as run:
        fill(run)
    page = Page(write_report(tmp_path / "run"))
    identities = [attributes["id"] for _tag, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert set(str(attributes["aria-labelledby"]).split()) <= set(identities)
        if tag == "th":
            assert "scope" in attributes
    assert "from 3 at step 1 to 0.6 at step 5" in page.words
    assert "The figures of zero as a table" in page.words


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    with run_at(tmp_path / "run", about=HOSTILE.replace("\ud800", "")) as run:
        metrics = Metrics(run.metrics, run.samples)
        metrics.step(HOSTILE, HOSTILE, 1, {"loss": 1.0, HOSTILE: 2.0})
        for stage in (HOSTILE, "zero"):
            metrics.evaluation(stage, HOSTILE, HOSTILE, problems=1, k=1, pass_at_1=0.5, stderr=0.1)
            metrics.sample(sample(stage, question=HOSTILE, thinking=HOSTILE, answer=HOSTILE,
                                  verdict=HOSTILE))  # fmt: skip
        run.update_manifest(status=HOSTILE, data={HOSTILE: HOSTILE})
    page = Page(write_report(tmp_path / "run"))
    assert not page.count("script")
    assert not page.count("img")
    assert page.count("style") == 1
    assert "<script>alert(1)</script>" in page.words
    assert "\x1b" not in page.words
    assert "\u202e" not in page.words


def test_a_run_broken_off_anywhere_has_a_report(tmp_path: Path) -> None:
    with run_at(tmp_path / "run") as run:
        fill(run)
    whole = {name: (tmp_path / "run" / name).read_bytes() for name in ("metrics.jsonl",
             "samples.jsonl")}  # fmt: skip
    for share in (0.0, 0.03, 0.3, 0.71, 0.9):
        for name, data in whole.items():
            (tmp_path / "run" / name).write_bytes(data[: int(share * len(data))])
        (tmp_path / "run" / "manifest.json").write_text("{" if share < 0.5 else '{"bill": [1]}')
        assert "tiny" in Page(write_report(tmp_path / "run")).words


def test_records_that_make_no_sense_are_left_out(tmp_path: Path) -> None:
    odd: list[Any] = [
        {"kind": "step"}, {"kind": "step", "stage": 3, "step": "x", "values": 5},
        {"kind": "step", "stage": "zero", "step": 1, "values": {"loss": None, "reward": [1]}},
        {"kind": "eval"}, {"kind": "eval", "pass_at_1": "much"}, {"kind": "eval", "pass_at_1": 0.5},
        {"kind": "eval", "pass_at_1": 0.5, "by": [1], "sampling": {"max_tokens": "x"}},
        {"kind": "stage_end", "time": 7}, {"kind": 5}, [], "text",
    ]  # fmt: skip
    run_at(tmp_path / "run").close()
    text = "\n".join(map(json.dumps, odd))
    (tmp_path / "run" / "metrics.jsonl").write_text(text)
    (tmp_path / "run" / "samples.jsonl").write_text('{"question": [1]}\n{}\n7')
    assert "50.0" in Page(write_report(tmp_path / "run")).words
    (tmp_path / "run" / "recipe.toml").write_text("stages = [1, {name = 2}]")
    Page(write_report(tmp_path / "run"))


def test_a_stage_asked_fewer_families_has_no_mean(tmp_path: Path) -> None:
    with run_at(tmp_path / "run") as run:
        metrics = Metrics(run.metrics, run.samples)
        for stage, families in (("base", ("sums", "gcd")), ("zero", ("sums",))):
            for family in families:
                metrics.evaluation(stage, "t", family, problems=9, k=1, pass_at_1=0.5, stderr=0.1)
    assert "mean 50.0 –" in Page(write_report(tmp_path / "run")).words


def test_a_huge_run_is_thinned(tmp_path: Path) -> None:
    run_at(tmp_path / "run").close()
    head = '{"kind": "step", "stage": "zero", "stage_kind": "rl", "step": '
    with (tmp_path / "run" / "metrics.jsonl").open("w") as file:
        for step in range(1, 100_001):
            values = f'{{"loss": {step % 7}, "reward": {step}, "pass_at_1": 0.5}}'
            file.write(f'{head}{step}, "values": {values}, "time": {{"seconds": 1}}}}\n')
    path = write_report(tmp_path / "run")
    assert path.stat().st_size < 60_000
    assert "100,000 steps in 27 h 46 min" in Page(path).words


def test_a_full_disk_leaves_the_earlier_report(tmp_path: Path) -> None:
    with run_at(tmp_path / "run") as run:
        fill(run)
    earlier = write_report(tmp_path / "run").read_bytes()
    code = [sys.executable, "-c", FULL, str(tmp_path / "run")]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout
    assert (tmp_path / "run" / "report.html").read_bytes() == earlier
    assert not [name for name in os.listdir(tmp_path / "run") if name.endswith(".new")]


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=300), st.integers(1, 50))
def test_thinning_keeps_ends_and_range(values: list[float], most: int) -> None:
    steps = [float(step) for step in range(1, len(values) + 1)]
    points = thinned(steps, values, most)
    assert len(points) <= most
    assert min(point.low for point in points) == min(values)
    assert max(point.high for point in points) == max(values)
    assert points[-1].step in (steps[-1], steps[0])
    chart = line_chart(points, identity="x", title="t", width=300, height=100)
    assert "nan" not in chart
    assert "inf" not in chart


@given(st.floats(-1e15, 1e15), st.floats(-1e15, 1e15))
def test_ticks_embrace_what_they_measure(first: float, second: float) -> None:
    low, high = sorted((first, second))
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 7
    assert all(mark < higher for mark, higher in pairwise(marks))
    room = (high - low) * 1e-6
    assert marks[0] <= low + room
    assert marks[-1] >= high - room


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-300, 2e-300]])
def test_flat_and_tiny_curves_are_drawn(values: list[float]) -> None:
    points = thinned([1.0, 2.0][: len(values)], values, 10)
    assert "polyline" in line_chart(points, identity="x", title="t", width=300, height=100)
