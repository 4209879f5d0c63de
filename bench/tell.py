"""Running a script's jobs and printing what came out, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

from contenders import Contender
from options import chosen, ready
from rounds import IDLE_SHARE, Job, Results, alternate, table_row

from mull.cli.doctor import cpu_name


def run(args: argparse.Namespace, jobs: list[Job], **options: Any) -> None:
    """options: of mull.load. The cache holds what the largest job needs, and kept prompts."""
    start = time.perf_counter()
    options.setdefault("cache_tokens", _cache_tokens(jobs))
    setting = chosen(args, **options)
    rounds = 1 if args.quick else args.rounds
    with ready(args.contenders, setting) as (contenders, absent):
        results = alternate(jobs, contenders, rounds)
        ours = [contender.word for contender in contenders if contender.is_ours]
        rows = [table_row(job, results, ours) for job in jobs]
        machine = describe(results, args.threads, rounds)
        greetings = {contender.word: contender.greeting for contender in contenders}
    machine["seconds"] = round(time.perf_counter() - start)
    if args.json:
        found = {"machine": machine, "contenders": greetings, "results": rows}
        print(json.dumps(found | {"absent": absent, "failed": results.failed}, indent=2))
        return
    for row in rows:
        show_row(row)
    show_machine(machine)


def _cache_tokens(jobs: list[Job]) -> int:
    held = 0
    for job in jobs:
        asked = job.request
        length = asked.get("context_tokens", 0) + asked.get("steps", 0) + asked.get("tokens", 0)
        held += asked.get("batch", 1) * (length + 64)
    return max(held, 16384)


def describe(results: Results, threads: int, rounds: int) -> dict[str, Any]:
    """The machine in this run: its peaks by round, median and spread."""
    peaks: dict[str, Any] = {}
    for name in ("read_gb_per_s", "fp32_gflop_per_s", "bf16_gflop_per_s", "int8_gop_per_s"):
        values = [getattr(peak, name) for peak in results.peaks]
        peaks[name] = {"median": median(values), "min": min(values), "max": max(values)}
    return {
        "cpu": cpu_name(),
        "threads": threads,
        "rounds": rounds,
        "peaks": peaks,
        "idle_share": round(results.idle_share, 3),
        "date": time.strftime("%Y-%m-%d"),
    }


def show_row(row: dict[str, Any]) -> None:
    print(row["job"])
    for word, rate in row["tokens_per_s"].items():
        line = f"  {word:<20}{rate['median']:>9,.1f}  ({rate['min']:,.1f}-{rate['max']:,.1f})"
        print(f"{line:<52}{_standing(row['mull'].get(word, {}))}".rstrip())


def _standing(standing: dict[str, Any]) -> str:
    parts = []
    ratios = dict(standing.get("ratio_to", {}))
    if "best" in ratios:
        parts.append(f"{ratios.pop('best'):.2f}x {standing['best_peer']}")
        best_family = standing["best_peer"].partition(":")[0]
        parts += [f"{r:.2f}x {family}" for family, r in ratios.items() if family != best_family]
    if "gb_per_s" in standing:
        parts.append(f"{standing['gb_per_s']} GB/s ({standing['share_of_read']:.0%} of read)")
    for name in ("int8", "bf16", "fp32"):
        if (share := standing.get(f"share_of_{name}")) is not None:
            parts.append(f"{standing['gop_per_s']:,.0f} GOP/s ({share:.0%} of {name})")
    return ", ".join(parts)


def show_machine(machine: dict[str, Any]) -> None:
    peaks = machine["peaks"]
    read = peaks["read_gb_per_s"]
    print(
        f"{machine['cpu']}, {machine['threads']} threads, {machine['rounds']} rounds in "
        f"{machine['seconds']} s; read {read['median']:.1f} GB/s "
        f"({read['min']:.1f}-{read['max']:.1f}), at best "
        f"{peaks['int8_gop_per_s']['max']:,.0f} GOP/s int8, "
        f"{peaks['bf16_gflop_per_s']['max']:,.0f} GFLOP/s bf16, "
        f"{peaks['fp32_gflop_per_s']['max']:,.0f} fp32"
    )
    if machine["idle_share"] > IDLE_SHARE:
        print(f"not clean: waiting contenders took {machine['idle_share']:.0%} of a core")


def waiting_for(contenders: list[Contender], word: str) -> Contender | None:
    return next((contender for contender in contenders if contender.word == word), None)
