"""Run folders as `mull train` leaves them, written by its own classes, for what shows them."""

from __future__ import annotations

import math
import random
from pathlib import Path

from mull.train.metrics import Metrics
from mull.train.recipe_file import parse_recipe
from mull.train.report import write_report
from mull.train.run_folder import RunFolder

RECIPE = {
    "name": "tiny",
    "about": "Two stages of arithmetic.",
    "model": {"depth": 2, "context": 64},
    "tokenizer": {"vocabulary": 290},
    "tasks": {"sums": {"families": {"addition": {}}}},
    "stages": [
        {"name": "base", "kind": "pretrain", "steps": 40, "data": [{"task": "sums"}]},
        {"name": "zero", "kind": "rl", "steps": 60, "task": "sums"},
    ],
}


class WrittenRun:
    """A run under way: every call adds to its logs as a trainer would."""

    def __init__(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recipe = parse_recipe(RECIPE, where="example", folder=folder.parent)
        self.folder = RunFolder.start(folder, recipe)
        self.metrics = Metrics(self.folder.metrics, self.folder.samples)
        self._random = random.Random(3)

    def pretrain(self) -> None:
        for step in range(1, 41):
            self.metrics.step(
                "base", "pretrain", step, {"loss": 0.6 + 3 * math.exp(-step / 9), "tokens": 4096}
            )
        bill = {"seconds": 61.5, "joules": 1845.0, "dollars": 0.0002, "tokens_trained": 163840}
        self.metrics.stage_end("base", "pretrain", 40, bill)
        self.metrics.evaluation(
            "base", "sums", "addition", problems=100, k=4, pass_at_1=0.31, stderr=0.02
        )

    def reinforce(self, steps: range) -> None:
        for step in steps:
            learnt = 1 - math.exp(-step / 20)
            values = {
                "loss": 0.1 * (1 - learnt),
                "reward": 0.3 + 0.6 * learnt + self._random.gauss(0, 0.02),
                "pass_at_1": 0.3 + 0.6 * learnt,
                "length": 20 + 30 * learnt,
                "entropy": 0.5,
            }
            self.metrics.step("zero", "rl", step, values, {"seconds": 1.0})

    def sample(self, question: str, answer: str, verdict: str, step: int = 10) -> None:
        self.metrics.sample(
            {
                "stage": "zero",
                "step": step,
                "question": question,
                "thinking": f"I add the two numbers of {question}",
                "answer": answer,
                "verdict": verdict,
                "reward": 1.0 if verdict == "correct" else 0.0,
                "tokens": 21,
            }
        )

    def finish(self) -> None:
        total = {"seconds": 121.5, "joules": 3645.0, "dollars": 0.0004}
        self.folder.update_manifest(status="done", bill={"total": total})
        write_report(self.folder.path)
        self.metrics.close()
        self.folder.close()
