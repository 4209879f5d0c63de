"""Claim: a run killed (kill -9) at any moments and resumed ends in the very bits of one never
stopped: every weight of every stage, every logged figure but the times.

Two runs of the smoke recipe, one untouched, one killed at random moments: a stage, one of the
records it writes, and up to a second more. One thread, so that sums are added
up in one order. Run: .venv/bin/python bench/kill_anywhere.py [--kills 30] [--seed 1] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mull.train.run_folder import (
    MANIFEST_NAME,
    METRICS_NAME,
    SAMPLES_NAME,
    comparable,
    read_manifest,
)

COMMAND = [sys.executable, "-c", "import sys; from mull.cli import main; sys.exit(main())", "train"]
# Often enough that a kill costs seconds; the same for both runs.
OFTEN = [f"stages.{stage}.checkpoint_every=10" for stage in ("base", "cold-start", "r1", "student")]
OFTEN += [f"stages.{stage}.checkpoint_every=1" for stage in ("zero", "reasoning")]
_LONGEST_S = 1800


def start(recipe: str, out: Path, *more: str) -> subprocess.Popen[bytes]:
    changes = [word for change in OFTEN for word in ("--set", change)]
    return subprocess.Popen(
        [*COMMAND, recipe, "--out", str(out), *changes, *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    if code := process.wait(timeout=_LONGEST_S):
        sys.exit(f"a run that nobody killed ended with {code}")


def records(out: Path) -> int:
    log = out / METRICS_NAME
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def moments_of(whole: Path, kills: int, draw: random.Random) -> list[int]:
    """Numbers of written records, every stage as likely as the others."""
    by_stage: dict[str, list[int]] = {}
    for index, record in enumerate(comparable(whole / METRICS_NAME)):
        # Evaluations name the stages they are of.
        stage = "evaluation" if record["kind"] == "eval" else record["stage"].partition(".")[0]
        by_stage.setdefault(stage, []).append(index)
    stages = list(by_stage.values())
    return [draw.choice(draw.choice(stages)) for _ in range(kills)]


def kill_at(process: subprocess.Popen[bytes], out: Path, count: int, delay: float) -> str | None:
    """Where it was killed, or None where it had ended before. The clock of the delay begins when
    the run is open (a resumed one has noted so) and has written so much."""
    manifest, deadline = out / MANIFEST_NAME, time.monotonic() + _LONGEST_S
    before = _changed(manifest)
    while process.poll() is None and time.monotonic() < deadline:
        if _changed(manifest) != before and records(out) >= count:
            break
        time.sleep(0.002)
    time.sleep(delay)
    if process.poll() is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    last = comparable(out / METRICS_NAME)[-1:] if (out / METRICS_NAME).is_file() else []
    where = f"{last[0]['kind']}:{last[0]['stage']} {last[0].get('step', '')}" if last else "nothing"
    return f"after {where}, {records(out)} records"


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def fingerprint(out: Path) -> dict[str, Any]:
    weights = {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("**/model.safetensors"))
    }
    logs = {name: comparable(out / name) for name in (METRICS_NAME, SAMPLES_NAME)}
    return {"weights": weights, **logs}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="smoke")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        begun = time.monotonic()
        finish(start(args.recipe, whole))
        seconds = time.monotonic() - begun
        total = records(whole)
        moments = sorted(moments_of(whole, args.kills, draw))
        places: list[str] = []
        for moment in moments:
            process = start(args.recipe, killed, *(["--resume"] if _has_run(killed) else []))
            place = kill_at(process, killed, moment, draw.uniform(0, 1.0))
            if place is None:
                break
            places.append(place)
            print(f"kill {len(places)}: {place}", file=sys.stderr)
        finish(start(args.recipe, killed, *(["--resume"] if _has_run(killed) else [])))
        equal = fingerprint(whole) == fingerprint(killed)
        repeated = read_manifest(killed)["bill"]["total"]["repeated_seconds"]
    stages = Counter(place.split(" ")[1].rstrip(",") for place in places)
    result = {
        "kills": len(places),
        "records": total,
        "kills_by_stage": dict(stages),
        "bit_identical": equal,
        "seconds_untouched": round(seconds, 1),
        "repeated_seconds": round(repeated, 1),
    }
    if args.json:
        print(json.dumps(result))
    else:
        where = ", ".join(f"{stage} {count}" for stage, count in stages.items())
        print(
            f"{len(places)} kills over {total} records ({where}): "
            f"{'bit-identical' if equal else 'DIFFERENT'}; {repeated:.0f} s were done again"
        )
    sys.exit(not equal)


def _has_run(out: Path) -> bool:
    return (out / "recipe.toml").is_file()


if __name__ == "__main__":
    main()
