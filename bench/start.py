"""Claim: a second `mull ask` prints its first token within 2.5 s, process start included, `--help`
answers within 0.5 s, and the process holds at most its packed weights, its cache and 300 MB.

Every figure is of fresh processes, the median of several. The model is started once before, so that
its packed weights are on disk. The cache counts as far as it is in memory: untouched pages of it
take none. Run: .venv/bin/python bench/start.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

LIMITS = {"first_token_s": 2.5, "help_s": 0.5, "beyond_weights_and_cache_mb": 300.0}
QUESTION = "What is the capital of France?"


def seconds_to_output(*words: str) -> float:
    """From starting `mull` with these words to the first byte it prints."""
    command = [str(Path(sys.executable).parent / "mull"), *words]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
    if not first or process.returncode:
        raise SystemExit(f"`mull {' '.join(words)}` failed: run it by hand")
    return seconds


def resident(model: str, precision: str) -> dict[str, float]:
    """Megabytes of this process after an answer; to be called in a process of its own."""
    import mull

    with mull.load(model, precision=precision) as llm:
        llm.generate(QUESTION, max_tokens=64, temperature=0)
        held = psutil.Process().memory_info().rss
        tensors = [*llm.engine.model.parameters(), *llm.engine.model.buffers()]
        weights = sum(tensor.nbytes for tensor in tensors)
        data = llm.engine.cache.data
        cache = _resident_of(data.data_ptr(), data.nbytes)
    return {
        "resident_mb": held / 1e6,
        "weights_mb": weights / 1e6,
        "cache_mb": cache / 1e6,
        "beyond_weights_and_cache_mb": (held - weights - cache) / 1e6,
    }


def _resident_of(begin: int, size: int) -> int:
    """Bytes in memory of the mappings that lie within an array (Linux)."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            first, last = (int(part, 16) for part in name.split("-"))
            inside = first < begin + size and last > begin
        elif inside and name == "Rss:":
            found += int(values[0]) * 1024
    return found


def measure(model: str, precision: str, rounds: int) -> dict[str, Any]:
    ask = ("ask", QUESTION, "-m", model, "--precision", precision, "--max-tokens", "8")
    seconds_to_output(*ask)
    asked = [seconds_to_output(*ask) for _ in range(rounds)]
    helped = [seconds_to_output("--help") for _ in range(rounds)]
    own = [sys.executable, __file__, "--resident", "--model", model, "--precision", precision]
    told = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures = {"first_token_s": median(asked), "help_s": median(helped), **json.loads(told)}
    return {
        "model": model,
        "precision": precision,
        **{name: round(value, 3) for name, value in figures.items()},
        "holds": {name: figures[name] <= limit for name, limit in LIMITS.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="does it run? figures mean nothing")
    parser.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident:
        print(json.dumps(resident(options.model, options.precision)))
        return
    figures = measure(options.model, options.precision, 1 if options.quick else options.rounds)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        if name != "holds":
            limit = f"  (at most {LIMITS[name]:g})" if name in LIMITS else ""
            print(f"{name:30} {value}{limit}")


if __name__ == "__main__":
    main()
