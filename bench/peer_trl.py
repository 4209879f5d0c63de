"""TRL's GRPOTrainer as a contender (see child.py): one step of its own training loop per request.

Full weights, bfloat16 by autocast as its trainer does it (or float32), no KL, every answer as long
as it may be.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from typing import Any

import torch
import transformers
import trl
from child import serve
from datasets import Dataset

_MOST_STEPS = 10_000


class _Turns(transformers.TrainerCallback):
    """Lets the trainer, in its own thread, make one step at a time."""

    def __init__(self) -> None:
        self.asked: queue.Queue[None] = queue.Queue()
        self.answers: queue.Queue[dict[str, Any] | Exception] = queue.Queue()
        self.rollout_seconds = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.asked.get()
        self.rollout_seconds, self._start = 0.0, time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds = time.perf_counter() - self._start
        rollout = self.rollout_seconds
        self.answers.put(
            {"seconds": seconds, "rollout_seconds": rollout, "update_seconds": seconds - rollout}
        )


class _Trainer(trl.GRPOTrainer):
    turns: _Turns

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        start = time.perf_counter()
        result = super()._generate_and_score_completions(inputs)
        self.turns.rollout_seconds += time.perf_counter() - start
        return result


def load(
    model: str,
    prompts: list[str],
    group: int,
    each: int,
    tokens: int,
    threads: int,
    *,
    bf16: bool,
) -> Any:
    """model: a folder in Hugging Face layout. each: questions of a step."""
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    turns = _Turns()
    config = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=_MOST_STEPS,
        per_device_train_batch_size=group,
        num_generations=group,
        gradient_accumulation_steps=each,
        max_completion_length=tokens,
        learning_rate=1e-6,
        beta=0.0,
        bf16=bf16,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        temperature=1.0,
        generation_kwargs={"min_new_tokens": tokens},
    )
    trainer = _Trainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        callbacks=[turns],
        # Any reward that differs within a group makes every answer count.
        reward_funcs=lambda completions, **_: [float(len(c) % 7) for c in completions],
    )
    trainer.turns = turns

    def train() -> None:
        try:
            trainer.train()
        except Exception as error:
            turns.answers.put(error)

    threading.Thread(target=train, daemon=True).start()

    def grpo_step() -> dict[str, Any]:
        turns.asked.put(None)
        answer = turns.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    return {"program": "trl", "version": trl.__version__}, {"grpo_step": grpo_step}


if __name__ == "__main__":
    serve(load)
