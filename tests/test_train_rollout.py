"""Answers sampled for training, and how what is learnt from is split into passes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_parts import DEEPSEEK, LLAMA, tiny_model
from hypothesis import example, given
from hypothesis import strategies as st
from train_data_parts import Sums, tokenizer_folder, writer_of

from mull.engine import Engine
from mull.errors import TrainError
from mull.kernels import native_available
from mull.train import rollout
from mull.train.batch import Batch, Example
from mull.train.data.writer import TraceWriter
from mull.train.recipe_parts import Optimiser, Sampling
from mull.train.rollout import Question, Sampler
from mull.train.stages.learn import in_passes
from mull.train.stages.rl import _missing
from mull.train.step import Learner

VOCABULARY = 300


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> TraceWriter:
    return writer_of(tokenizer_folder(Path(tmp_path_factory.mktemp("t")), VOCABULARY))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each engine that a sampler made may run."""
    made: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Engine:
        made.append(kwargs["max_running"])
        return Engine(*args, **kwargs)

    monkeypatch.setattr(rollout, "Engine", counted)
    return made


@contextmanager
def threads(count: int) -> Iterator[None]:
    was = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(was)


def sampler_of(writer: TraceWriter, shape: dict[str, Any], **more: Any) -> Sampler:
    return Sampler(tiny_model({**shape, "vocab_size": VOCABULARY}, seed=1), writer, **more)


def asked(sampler: Sampler, count: int) -> list[Question]:
    problems = islice(Sums().problems("train", 1), count)
    return [sampler.question(problem, seed) for seed, problem in enumerate(problems)]


@pytest.mark.skipif(not native_available(), reason="only a fused model has two engines")
@pytest.mark.parametrize("shape", [LLAMA, DEEPSEEK])
@pytest.mark.parametrize("questions", [1, 2, 7])
def test_answers_do_not_depend_on_how_many_engines_make_them(writer, engines, shape, questions):
    results = []
    for count in (1, 2, 5):
        engines.clear()
        sampler = sampler_of(writer, shape)
        with threads(count):
            answers = sampler.answers(asked(sampler, questions), Sampling(max_tokens=30), 3)
        assert len(engines) == (1 if count == 1 else min(2, questions))
        assert sum(engines) == 3 * questions
        assert [len(some) for some in answers] == [3] * questions
        assert sampler.spent.tokens == sum(len(each.ids) for some in answers for each in some)
        results.append(answers)
    assert results[1:] == results[:1] * 2


@pytest.mark.parametrize("shape", [LLAMA, DEEPSEEK])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_the_trainer_computes(writer, shape, temperature):
    model = tiny_model({**shape, "vocab_size": writer.tokenizer.vocab_size}, seed=1)
    sampler = Sampler(model, writer)
    questions = asked(sampler, 3)
    sampling = Sampling(temperature=temperature, max_tokens=40, think_budget=20)
    learner = Learner(model, Optimiser(), 1, temperature=temperature)
    all_answers = sampler.answers(questions, sampling, 2)
    assert any(answer.forced for answers in all_answers for answer in answers)
    for question, answers in zip(questions, all_answers, strict=True):
        for answer in answers:
            drawn = [place not in answer.forced for place in range(len(answer.ids))]
            none = [False] * len(question.prompt)
            batch = Batch.pack([Example([*question.prompt, *answer.ids], [*none, *drawn])])
            ours_T = learner.logprobs([batch])[0][len(none) - 1 : -1]
            assert answer.logprobs == pytest.approx(ours_T.tolist(), abs=1e-4)


@pytest.mark.skipif(not native_available(), reason="only a fused model has two engines")
def test_an_error_in_one_engine_ends_the_other(writer):
    steps: Counter[int] = Counter()
    raised = threading.Event()

    def check() -> None:
        own = threading.get_ident()
        steps[own] += 1
        if steps[own] < 3:
            return
        if len(steps) == 2 and own == list(steps)[1]:
            raised.set()
            raise TrainError("stop here")
        raised.wait(30)
        time.sleep(0.05)  # now this one should be stopped soon, long before its answers end

    sampler = sampler_of(writer, LLAMA, check=check)
    with threads(2), pytest.raises(TrainError, match="stop here"):
        sampler.answers(asked(sampler, 4), Sampling(max_tokens=1500), 3)
    assert raised.is_set()
    assert max(steps.values()) < 40


@given(lengths=st.lists(st.integers(1, 40), max_size=60), most_tokens=st.integers(5, 200))
@example(lengths=[1] * 57, most_tokens=13)
@example(lengths=[10] * 64, most_tokens=82)
def test_passes_hold_everything_once_and_are_even(lengths, most_tokens):
    batches = in_passes([Example([7] * length, [True] * length) for length in lengths], most_tokens)
    assert [length for batch in batches for length in batch.lengths] == sorted(lengths)
    sizes = [batch.tokens for batch in batches]
    assert all(b.tokens <= most_tokens or len(b.lengths) == 1 for b in batches)
    if sum(lengths) <= most_tokens:
        assert len(batches) == bool(lengths)
    elif lengths:
        assert max(sizes) - min(sizes) <= 2 * max(lengths)


def test_resampling_asks_for_as_many_as_are_likely_to_be_dead():
    def missing(live: int, dead: int, resample: float = 4.0) -> int:
        groups = [SimpleNamespace(is_dead=i >= live) for i in range(live + dead)]
        stage = SimpleNamespace(questions=8, resample=resample)
        return _missing(groups, stage)  # type: ignore[arg-type]

    assert missing(0, 0) == 8
    assert missing(8, 0) == missing(9, 3) == 0
    assert missing(6, 2) == 3  # two are missing, and a quarter was dead
    assert missing(4, 4) == 8
    assert missing(0, 8) == 8  # at most as many as before
    assert missing(4, 4, resample=1.5) == 4
    assert missing(2, 6, resample=1.0) == 0
