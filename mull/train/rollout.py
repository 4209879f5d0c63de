"""Answers sampled by mull's own engine on the trainer's own weights.

The answers to a question share one prefill. A question's seed is a pure function of the run's seed,
stage, step and question, and guessing ahead is off, so the tokens do not depend on timing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from mull import kernels
from mull.engine import Engine, Output, Request, SamplingParams, prepare
from mull.engine.fused_decoder import FusedDecoder
from mull.engine.prepare import PRECISIONS
from mull.errors import TrainError
from mull.model import CausalLM
from mull.tasks import Problem
from mull.train.data.writer import TraceWriter
from mull.train.models import plain
from mull.train.recipe_parts import Sampling
from mull.weights import available_memory

# Of all engines. More at once are hardly faster, and their keys no longer fit the processor's
# caches.
_MOST_RUNNING = 512
_BATCH_TOKENS = 4096
_BLOCK = 16
# Share of the free memory that the keys of one rollout may take.
_CACHE_SHARE = 0.4
# Two engines are 1.18 times as fast as one with 5 MB of weights, 1.36 with 13, 1.12 with 28 and
# 1.02 with 46 (measured): the bigger the model, the less of a step is Python.
_MOST_FOR_TWO = 32 << 20


@dataclass(frozen=True)
class Question:
    """seed: of its answers. prompt: as the engine is given it."""

    problem: Problem
    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class Answer:
    """ids: as sampled, end token included. logprobs: at the temperature they were drawn at, before
    top_p; 0 at the positions that were not drawn (`forced`)."""

    ids: list[int]
    logprobs: list[float]
    forced: frozenset[int]
    is_truncated: bool
    thinking: str
    text: str


@dataclass
class Spent:
    """Of all answers so far: tokens sampled, and seconds."""

    tokens: int = 0
    seconds: float = 0.0


class Sampler:
    """Answers questions with the weights the model has now.

    thinking: whether prompts have opened the thinking. check: called now and then; what it raises
    ends the sampling.
    """

    def __init__(
        self,
        model: CausalLM,
        writer: TraceWriter,
        *,
        precision: str = "fp32",
        thinking: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.writer = writer
        self.thinking = thinking
        self.spent = Spent()
        self._check = check
        self._device = model.lm_head.weight.device
        self._precision = precision
        with torch.no_grad():
            self._model = prepare(plain(model, mtp=False), precision=precision, device=self._device)
        self._bytes = sum(each.numel() * each.element_size() for each in model.parameters())

    def question(self, problem: Problem, seed: int) -> Question:
        prompt = self.writer.prompt(problem.question, thinking=self.thinking)
        return Question(problem, prompt, seed)

    def answers(
        self, questions: Sequence[Question], sampling: Sampling, each: int, *, logprobs: bool = True
    ) -> list[list[Answer]]:
        """`each` answers to every question, in order."""
        start = time.perf_counter()
        parts = max(1, min(self._engines, len(questions)))
        cache_bytes = int(available_memory() * _CACHE_SHARE) // parts
        stopped = threading.Event()

        def sampled(some: Sequence[Question]) -> list[list[Answer]]:
            engine = self._engine(some, sampling.max_tokens, each, cache_bytes, parts)
            return self._sampled(
                engine, [self._request(q, sampling, each, logprobs) for q in some], stopped
            )

        if parts == 1:
            answers = sampled(questions)
        else:
            kernels.release_threads()
            dealt = _at_once(sampled, [questions[part::parts] for part in range(parts)], stopped)
            answers = [dealt[i % parts][i // parts] for i in range(len(questions))]
        self.spent.tokens += sum(len(answer.ids) for some in answers for answer in some)
        self.spent.seconds += time.perf_counter() - start
        return answers

    @property
    def _engines(self) -> int:
        """Two at once for a model so small that half of a step is Python: one computes meanwhile.
        Tokens do not depend on it, where native kernels do all of a step."""
        is_small = isinstance(self._model.model, FusedDecoder) and self._bytes <= _MOST_FOR_TWO
        return 2 if is_small and torch.get_num_threads() > 1 else 1

    def _sampled(
        self, engine: Engine, requests: Sequence[Request], stopped: threading.Event
    ) -> list[list[Answer]]:
        places = {engine.submit(request): index for index, request in enumerate(requests)}
        outputs: list[list[Output]] = [[] for _ in requests]
        while engine.has_work:
            self._check()
            if stopped.is_set():
                raise CancelledError
            for event in engine.step():
                if event.output is not None:
                    outputs[places[event.request_id]].append(event.output)
        kernels.release_threads()
        return [
            [_answer(output) for output in sorted(some, key=lambda output: output.index)]
            for some in outputs
        ]

    def _request(
        self, question: Question, sampling: Sampling, each: int, logprobs: bool
    ) -> Request:
        params = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            logprobs=0 if logprobs else None,
            tempered_logprobs=sampling.temperature != 1.0,
            seed=question.seed,
            n=each,
        )
        return Request(
            question.prompt,
            params,
            starts_in_thinking=self.thinking,
            think_budget=sampling.think_budget if self.thinking else None,
            detect_loops=False,
            speculate=False,
            streams=False,
        )

    def _engine(
        self,
        questions: Sequence[Question],
        max_tokens: int,
        each: int,
        cache_bytes: int,
        parts: int,
    ) -> Engine:
        longest = max(len(question.prompt) for question in questions)
        context = self._model.config.max_position_embeddings
        if longest + max_tokens > context:
            raise TrainError(
                f"a question of {longest} tokens and an answer of up to {max_tokens} do not fit "
                f"into the model's context of {context}: lower sampling.max_tokens, or give the "
                "model a larger context"
            )
        dtype = torch.float32 if self._precision == "fp32" else PRECISIONS[self._precision]
        room = -(-(longest + max_tokens) // _BLOCK) * _BLOCK + _BLOCK
        running = min(_MOST_RUNNING // parts, each * len(questions))
        per_token = self._model.config.cache_bytes_per_token(dtype)
        return Engine(
            self._model,
            self.writer.tokenizer,
            self.writer.template,
            context=longest + max_tokens,
            cache_tokens=max(room, min(running * room, cache_bytes // per_token)),
            cache_dtype=dtype,
            max_batch_tokens=_BATCH_TOKENS,
            max_running=running,
            max_queue=each * len(questions),
            speculation="off",
            device=self._device,
        )


_Sampled = list[list[Answer]]


def _at_once(
    work: Callable[[Sequence[Question]], _Sampled],
    parts: Sequence[Sequence[Question]],
    stopped: threading.Event,
) -> list[_Sampled]:
    """What `work` makes of each part in a thread of its own, with its share of torch's threads.
    Where one fails, or this thread is interrupted, the others are stopped."""
    threads = torch.get_num_threads()

    def one(index: int) -> _Sampled:
        torch.get_num_threads()  # a new thread first takes over what the process had set last
        torch.set_num_threads(max(1, (threads + index) // len(parts)))
        return work(parts[index])

    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            running = [pool.submit(one, index) for index in range(len(parts))]
            try:
                done, _ = wait(running, return_when=FIRST_EXCEPTION)
                for each in done:
                    each.result()
            except BaseException:
                stopped.set()
                raise
        return [each.result() for each in running]
    finally:
        torch.set_num_threads(threads)  # what threads to come begin with


def _answer(output: Output) -> Answer:
    drawn = output.logprobs or []
    return Answer(
        ids=output.token_ids,
        logprobs=[each.logprob or 0.0 for each in drawn],
        forced=frozenset(output.forced_positions),
        is_truncated=output.finish_reason == "length",
        thinking=output.thinking,
        text=output.text,
    )
