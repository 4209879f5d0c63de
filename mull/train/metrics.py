"""Everything a run measures, as JSON lines and as TensorBoard events.

Four kinds of record in metrics.jsonl. What differs between two equal runs lies under "time" alone;
numbers that JSON cannot hold are null.

    {"kind": "step", "stage", "stage_kind", "step", "values": {...}, "time": {...}}
        values, as far as the stage has them:
            loss, mtp_loss, learning_rate, grad_norm, tokens        every stage
            validation_loss                                         now and then
            reward, pass_at_1, length, dead_groups, entropy, gap, kl, clipped, truncated    rl
        length: mean tokens of an answer, thinking included. dead_groups: share of groups all right
        or all wrong. gap: mean |log-probability of the rollout - of the trainer|.
        time: seconds (of the step), rollout_tokens_per_s, update_tokens_per_s, utilisation (of
        the measured peak, 0 to 1), at (seconds since the epoch)
    {"kind": "eval", "by", "stage", "task", "family", "thinking", "sampling", "problems", "k",
     "pass_at_1", "stderr", "greedy", "tokens", "truncated", "verifier_failed", "ood", "levels"}
        by: the eval stage; stage: the one whose model was asked. thinking: on or off. greedy:
        pass@1 at temperature 0, or null. tokens: mean of an answer. truncated, verifier_failed:
        shares. ood: out of the trained distribution. levels: pass@1 by level of difficulty.
    {"kind": "best", "stage", "stage_kind", "best_step", "validation_loss", "last_step",
     "last_validation_loss"}
        which state is the result of a stage that validates.
    {"kind": "stage_end", "stage", "stage_kind", "step", "tokens_trained", "tokens_sampled",
     "flops", "time": {seconds, repeated_seconds, joules, kwh, dollars}}

samples.jsonl: {"stage", "step", "question", "thinking", "answer", "verdict", "reward", "tokens"}.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mull.errors import TrainError
from mull.train.figures import number
from mull.train.json_lines import JsonLines
from mull.train.state import reason

_OF_THE_CLOCK = ("seconds", "repeated_seconds", "joules", "kwh", "dollars")


class Sample(TypedDict):
    """One answer to look at. verdict: correct, wrong, unparsable, truncated, verifier_failed."""

    stage: str
    step: int
    question: str
    thinking: str
    answer: str
    verdict: str
    reward: float
    tokens: int


class Metrics:
    """Writes the records; each method returns the one it wrote, for whoever shows it."""

    def __init__(self, log: JsonLines, samples: JsonLines, tensorboard: Path | None = None) -> None:
        self._log = log
        self._samples = samples
        self._events = None if tensorboard is None else Events(tensorboard)

    def step(
        self,
        stage: str,
        stage_kind: str,
        step: int,
        values: Mapping[str, Any],
        timing: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What one step measured; steps of a stage count from 1. Raises TrainError (disk)."""
        timing = {**(timing or {}), "at": time.time()}
        record = {
            "kind": "step",
            "stage": stage,
            "stage_kind": stage_kind,
            "step": step,
            "values": dict(values),
            "time": timing,
        }
        self._log.append(record)
        if self._events is not None:
            self._events.write(stage, step, {**values, **timing})
        return record

    def evaluation(
        self,
        stage: str,
        task: str,
        family: str,
        *,
        problems: int,
        k: int,
        pass_at_1: float,
        stderr: float,
        by: str = "",
        thinking: str = "on",
        sampling: Mapping[str, Any] | None = None,
        greedy: float | None = None,
        tokens: float = 0.0,
        truncated: float = 0.0,
        verifier_failed: float = 0.0,
        ood: bool = False,
        levels: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """How the model of `stage` did on one family of a task when the eval stage `by` asked it;
        levels: pass@1 of each."""
        record = {
            "kind": "eval",
            "by": by,
            "stage": stage,
            "task": task,
            "family": family,
            "thinking": thinking,
            "sampling": dict(sampling or {}),
            "problems": problems,
            "k": k,
            "pass_at_1": pass_at_1,
            "stderr": stderr,
            "greedy": greedy,
            "tokens": tokens,
            "truncated": truncated,
            "verifier_failed": verifier_failed,
            "ood": ood,
            "levels": dict(levels or {}),
        }
        self._log.append(record)
        return record

    def best(
        self, stage: str, stage_kind: str, step: int, loss: float, last_step: int, last_loss: float
    ) -> dict[str, Any]:
        """The state that is a stage's result, beside the last one; losses: of validation."""
        record = {
            "kind": "best",
            "stage": stage,
            "stage_kind": stage_kind,
            "best_step": step,
            "validation_loss": loss,
            "last_step": last_step,
            "last_validation_loss": last_loss,
        }
        self._log.append(record)
        return record

    def stage_end(
        self, stage: str, stage_kind: str, step: int, bill: Mapping[str, float]
    ) -> dict[str, Any]:
        """bill: `Bill.line(stage)`."""
        record = {
            "kind": "stage_end",
            "stage": stage,
            "stage_kind": stage_kind,
            "step": step,
            **{name: value for name, value in bill.items() if name not in _OF_THE_CLOCK},
            "time": {name: bill[name] for name in _OF_THE_CLOCK if name in bill},
        }
        self._log.append(record)
        return record

    def sample(self, sample: Sample) -> None:
        self._samples.append(sample)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class Events:
    """TensorBoard event files, one folder (a "run" there) per stage, so that curves overlay.

    Written synchronously: the package's own SummaryWriter hands records to a thread that dies on a
    full disk and then blocks the trainer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, EventsWriter] = {}

    def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        now = time.time()
        scalars = [
            Summary.Value(tag=name, simple_value=figure)
            for name, value in values.items()
            if name != "at" and (figure := number(value)) is not None
        ]
        try:
            writer = self._writers.get(stage) or self._open(stage, step, now)
            event = Event(wall_time=now, step=step, summary=Summary(value=scalars))
            writer.write_event(event)
            writer.flush()
        except OSError as error:
            self._writers.clear()
            raise TrainError(
                f"{self._folder}: could not be written ({reason(error)}); "
                "free some space and resume"
            ) from error

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _open(self, stage: str, step: int, now: float) -> EventsWriter:
        folder = self._folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        # The package names files by the second: one resumed at once would replace the first.
        count = len(list(folder.iterdir()))
        writer = EventsWriter(str(folder / "events"), f".{count}")
        # Tells readers to forget what a killed run wrote from this step on.
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=now, step=step, session_log=start))
        self._writers[stage] = writer
        return writer
