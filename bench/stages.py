"""The stages of one or several runs of a recipe beside each other: what docs/r1.md and the log say.

Per stage and task pass@1 sampled / greedy in percent, mean over the runs and half their range; per
family for the first task. Every figure is read from the runs' metrics.jsonl.
Run: .venv/bin/python bench/stages.py RUN [RUN ...]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def records(run: Path) -> list[Row]:
    with (run / "metrics.jsonl").open() as lines:
        return [json.loads(line) for line in lines]


def score(rows: list[Row], of: str) -> float:
    """Percent of all the problems, in however many families they came."""
    right = sum(row[of] * row["problems"] for row in rows)
    return 100 * right / sum(row["problems"] for row in rows)


def spread(values: list[float]) -> str:
    mean = sum(values) / len(values)
    half = (max(values) - min(values)) / 2
    return f"{mean:.1f}" + (f" ± {half:.1f}" if len(values) > 1 else "")


def both(by_run: list[list[Row]]) -> str:
    sampled, greedy = ([score(rows, of) for rows in by_run] for of in ("pass_at_1", "greedy"))
    return f"{spread(sampled)} / {spread(greedy)}"


def table(runs: list[Path]) -> str:
    found: dict[tuple[str, str], list[list[Row]]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    families: dict[str, None] = {}
    tasks: dict[str, None] = {}
    for run in runs:
        mine: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for record in records(run):
            if record["kind"] == "stage_end":
                seconds[record["stage"]].append(record["time"]["seconds"])
            if record["kind"] == "eval":
                mine[record["stage"], record["task"]].append(record)
                tasks[record["task"]] = None
                families[record["family"]] = None
        for key, rows in mine.items():
            found[key].append(rows)
    first, *_ = tasks
    names = sorted(families)
    lines = [
        "| stage | seconds | "
        + " | ".join([*tasks, *(f"{first}: {name}" for name in names)])
        + " |",
        "|---" * (2 + len(tasks) + len(names)) + "|",
    ]
    for stage in {stage: None for stage, _ in found}:
        cells = [both(found[stage, task]) for task in tasks]
        for name in names:
            per_run = [
                [row for row in rows if row["family"] == name] for rows in found[stage, first]
            ]
            cells.append(both([rows for rows in per_run if rows]))
        took = spread(seconds[stage]) if seconds[stage] else ""
        lines.append(f"| {stage} | {took} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    print(table(parser.parse_args().runs))


if __name__ == "__main__":
    main()
