"""A whole recipe in seconds, and running it as a process that can be killed.

One thread: two would wait for each other longer than they work on a model this small.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mull_command import MULL

from mull.train.recipe import Recipe
from mull.train.recipe_file import load_recipe
from mull.train.run_folder import METRICS_NAME, SAMPLES_NAME, comparable

TASK = '''
"""Which of two words comes later; one line of thought."""

def make_problem(rng):
    number = rng.randrange(100_000)
    answer = "odd" if number % 2 else "even"
    return f"{number}?", answer, f"{number % 10} {answer}"
'''

RECIPE = """
name = "tiny"
seed = 3
model = { depth = 2, context = 64 }
tokenizer = { vocabulary = 290 }
tasks.parity.file = "parity.py"

[[stages]]
name = "base"
kind = "pretrain"
steps = 60
batch_tokens = 512
max_length = 64
checkpoint_every = 9
validate_every = 30
data = [{ task = "parity", forms = { chat = 0.7, worked = 0.2, guess = 0.1 } }]
optimiser = { name = "muon", learning_rate = 0.02, warmup = 2 }

[[stages]]
name = "zero"
kind = "rl"
task = "parity"
steps = 3
questions = 6
group = 4
minibatches = 2
staleness = 1
kl = 0.01
reference_every = 2
resample = 1.5
focus = 0.6
checkpoint_every = 1
sampling = { max_tokens = 16 }

[[stages]]
name = "kept"
kind = "reject"
task = "parity"
questions = 24
samples = 2
sampling = { max_tokens = 16 }

[[stages]]
name = "r1"
kind = "sft"
start = "base"
epochs = 2
batch_tokens = 256
max_length = 64
data = [{ stage = "kept" }]

[[stages]]
name = "student"
kind = "distill"
teacher = "r1"
task = "parity"
questions = 16
sampling = { max_tokens = 16 }
student = { depth = 1, context = 64 }
steps = 4
batch_tokens = 256
max_length = 64
checkpoint_every = 2

[[stages]]
name = "scores"
kind = "eval"
tasks = ["parity"]
stages = ["base", "student"]
problems = 12
sampling = { max_tokens = 16 }
"""


def on_one_thread() -> Iterator[None]:
    """For a fixture of a module that runs recipes in its own process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    (folder / "parity.py").write_text(TASK)
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def tiny(folder: Path, *changes: str) -> Recipe:
    return load_recipe(write_recipe(folder), changes)


def start(recipe: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [MULL, "train", str(recipe), "--out", str(out), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_records(out: Path, count: int, process: subprocess.Popen[Any]) -> None:
    """Until the run has written so many records, or has ended."""
    log = out / METRICS_NAME
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and log.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)


def kill(process: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def fingerprint(out: Path) -> dict[str, Any]:
    """All that two equal runs have in common: every weight and every figure but the times."""
    weights = {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("**/model.safetensors"))
    }
    return {
        "weights": weights,
        "metrics": comparable(out / METRICS_NAME),
        "samples": comparable(out / SAMPLES_NAME),
    }
