"""Contenders taking turns, and what is told about it afterwards.

In every round each job is done by every contender, one after the other, so that a slow minute of
the machine hits all of them; the machine's own peaks are measured beside. Medians over the rounds
count, the least and the greatest are given as spread.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import reduce
from statistics import median
from typing import Any

from contenders import Contender, ContenderError

from mull.kernels.peaks import Peaks, measure_peaks, read_bandwidth

# More than this share of one core taken by contenders that wait is told: the run is not clean.
IDLE_SHARE = 0.05


@dataclass(frozen=True)
class Job:
    """One row of a table. do and request: see child.py; seed changes with the round."""

    label: str
    do: str
    request: dict[str, Any]


@dataclass
class Reading:
    """One answer, and the read bandwidth measured just before the job of that round."""

    seconds: float
    tokens: float
    bytes: float | None
    ops: float | None
    read_gb_per_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def gb_per_s(self) -> float | None:
        return None if self.bytes is None else self.bytes / self.seconds / 1e9

    @property
    def gop_per_s(self) -> float | None:
        return None if self.ops is None else self.ops / self.seconds / 1e9


@dataclass
class Results:
    """readings[job label][contender word], the machine's peaks by round, and what went wrong."""

    readings: dict[str, dict[str, list[Reading]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    peaks: list[Peaks] = field(default_factory=list)
    idle_share: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)


def alternate(jobs: list[Job], contenders: list[Contender], rounds: int) -> Results:
    """One untimed round, then `rounds` that count. Who goes first changes from round to round."""
    results = Results()
    for turn in range(rounds + 1):
        if turn:
            results.peaks.append(measure_peaks())
        order = contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]
        for job in jobs:
            bandwidth = read_bandwidth(3)
            for contender in order:
                answer = _ask(contender, job, turn, contenders, results)
                if turn and answer is not None:
                    reading = Reading(
                        answer["seconds"],
                        answer["tokens"],
                        answer.get("bytes"),
                        answer.get("ops"),
                        bandwidth,
                    )
                    results.readings[job.label][contender.word].append(reading)
        told = f"round {turn} of {rounds}" if turn else "warm"
        print(f"{told}, read {bandwidth:.1f} GB/s", file=sys.stderr)
    return results


def _ask(
    contender: Contender, job: Job, turn: int, everybody: list[Contender], results: Results
) -> dict[str, Any] | None:
    key = f"{contender.word}, {job.label}"
    if key in results.failed:
        return None
    waiting = [other for other in everybody if other is not contender]
    before = sum(other.cpu_seconds() for other in waiting)
    try:
        answer = contender.ask(job.do, seed=1000 * (turn + 1), **job.request)
    except ContenderError as error:
        results.failed[key] = str(error)
        print(f"failed: {error}", file=sys.stderr)
        return None
    if answer is None:
        return None
    idle = sum(other.cpu_seconds() for other in waiting) - before
    if turn:
        results.idle_share = max(results.idle_share, idle / max(answer["seconds"], 0.2))
    return answer


def table_row(job: Job, results: Results, ours: list[str]) -> dict[str, Any]:
    """Every contender's median and spread; for ours the ratios to the peers and shares of peaks."""
    by_word = results.readings[job.label]
    rates = {word: [r.tokens_per_s for r in readings] for word, readings in by_word.items()}
    medians = {word: median(values) for word, values in rates.items()}
    row: dict[str, Any] = {"job": job.label, **job.request, "tokens_per_s": {}, "mull": {}}
    for word, values in rates.items():
        row["tokens_per_s"][word] = {
            "median": round(medians[word], 1),
            "min": round(min(values), 1),
            "max": round(max(values), 1),
        }
    peers = {word: rate for word, rate in medians.items() if word not in ours}
    for word in ours:
        if word in by_word:
            row["mull"][word] = _standing(word, by_word[word], medians, peers, results)
    return row


def _standing(
    word: str,
    readings: list[Reading],
    medians: dict[str, float],
    peers: dict[str, float],
    results: Results,
) -> dict[str, Any]:
    standing: dict[str, Any] = {"ratio_to": {}}
    if peers:
        best = max(peers, key=lambda peer: peers[peer])
        standing["best_peer"] = best
        standing["ratio_to"]["best"] = round(medians[word] / peers[best], 2)
    for family in sorted({peer.partition(":")[0] for peer in peers}):
        rate = max(rate for peer, rate in peers.items() if peer.startswith(f"{family}:"))
        standing["ratio_to"][family] = round(medians[word] / rate, 2)
    moved = [(r.gb_per_s, r.read_gb_per_s) for r in readings if r.gb_per_s is not None]
    if moved:
        standing["gb_per_s"] = round(median(gb for gb, _ in moved), 1)
        standing["share_of_read"] = round(median(gb / peak for gb, peak in moved), 3)
    done = [r.gop_per_s for r in readings if r.gop_per_s is not None]
    if done:
        standing["gop_per_s"] = round(median(done), 0)
        precision = word.partition(":")[2].partition("+")[0]
        name, peak = reduce(Peaks.best_of, results.peaks).of_products(precision)
        standing[f"share_of_{name}"] = round(median(done) / peak, 3)
    return standing
