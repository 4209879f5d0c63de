"""Claim: mull decodes at least 3x as fast as transformers' `generate` at batch 1, 2.5x at batch 16.

All contenders are loaded side by side in one process and take turns; the median over the rounds
counts, and the read bandwidth of every round is measured beside. transformers runs in bf16 and in
fp32, the better one counts. Run: .venv/bin/python bench/decode.py [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peers import Contender, available_peers

import mull
from mull import weights
from mull.cli.doctor import cpu_name
from mull.cli.peaks import read_bandwidth
from mull.cli.speed import decode_seconds, prefill_seconds

PREFILL_TOKENS = 512
Rates = dict[tuple[str, int], dict[str, list[float]]]


class Mull:
    """The engine itself, as `mull bench` times it."""

    def __init__(self, model: str, precision: str, threads: int) -> None:
        self._llm = mull.load(model, precision=precision, threads=threads)
        self._llm.close()  # ends the thread that steps the engine: the bench steps it itself
        self.name = f"mull {mull.__version__} {self._llm.precision}"

    def prefill(self, tokens: int, seed: int) -> float:
        return tokens / prefill_seconds(self._llm.engine, tokens, seed)

    def decode(self, batch: int, steps: int, seed: int) -> float:
        return batch * steps / decode_seconds(self._llm.engine, batch, steps, seed)


def measure(
    contenders: list[Contender], batches: list[int], steps: int, rounds: int
) -> tuple[Rates, list[float]]:
    """Rates by (metric, batch) and contender, and the read bandwidth before every round."""
    jobs = [("prefill", PREFILL_TOKENS)] + [("decode", batch) for batch in batches]
    rates: Rates = {job: {contender.name: [] for contender in contenders} for job in jobs}
    bandwidths = []
    for turn in range(rounds + 1):  # the first round warms up
        bandwidth = read_bandwidth()
        for metric, batch in jobs:
            # Who goes first changes, so that nobody always follows the same neighbour.
            for contender in (
                contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]
            ):
                seed = 1000 * turn + batch
                if metric == "prefill":
                    rate = contender.prefill(batch, seed)
                else:
                    rate = contender.decode(batch, steps, seed)
                if turn:
                    rates[metric, batch][contender.name].append(rate)
        if turn:
            bandwidths.append(bandwidth)
            print(f"round {turn} of {rounds}, read {bandwidth:.1f} GB/s", file=sys.stderr)
    return rates, bandwidths


def report(rates: Rates, ours: str) -> list[dict[str, Any]]:
    """One object per metric and batch: every contender's median and spread, and our ratios."""
    rows = []
    for (metric, batch), by_name in rates.items():
        medians = {name: median(values) for name, values in by_name.items()}
        row: dict[str, Any] = {"metric": metric, "batch": batch, "tokens_per_s": {}, "ratio_to": {}}
        for name, values in by_name.items():
            row["tokens_per_s"][name] = {
                "median": round(medians[name], 1),
                "min": round(min(values), 1),
                "max": round(max(values), 1),
            }
        for family in ("transformers", "llama.cpp"):
            rivals = [value for name, value in medians.items() if name.startswith(family)]
            if rivals:
                row["ratio_to"][family] = round(medians[ours] / max(rivals), 2)
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(f"{row['metric']}, batch {row['batch']}")
        for name, rate in row["tokens_per_s"].items():
            print(f"  {name:<42} {rate['median']:>9,.1f}   ({rate['min']:,.1f}-{rate['max']:,.1f})")
        ratios = (f"{ratio:.2f}x {family}" for family, ratio in row["ratio_to"].items())
        print(f"  mull is {' and '.join(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="name or file, in GGUF")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    batches = [int(batch) for batch in args.batches.split(",")]
    torch.set_num_threads(args.threads)

    gguf = Path(weights.pull(args.model).path)
    us = Mull(args.model, args.precision, args.threads)
    peers = available_peers(gguf, threads=args.threads, max_batch=max(batches), steps=args.steps)
    rates, bandwidths = measure([us, *peers], batches, args.steps, args.rounds)
    rows = report(rates, us.name)
    if args.json:
        machine = {
            "cpu": cpu_name(),
            "threads": args.threads,
            "read_gb_per_s": [round(bandwidth, 1) for bandwidth in bandwidths],
            "date": time.strftime("%Y-%m-%d"),
        }
        print(json.dumps({"machine": machine, "results": rows}, indent=2))
        return
    show(rows)
    low, high = min(bandwidths), max(bandwidths)
    print(f"{cpu_name()}, {args.threads} threads, read {low:.1f}-{high:.1f} GB/s meanwhile")


if __name__ == "__main__":
    main()
