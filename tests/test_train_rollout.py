"""Answers sampled for training, and how what is learnt from is split into passes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from engine_parts import DEEPSEEK, LLAMA, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from train_data_parts import Sums, tokenizer_folder, writer_of

from mull.train.batch import Example
from mull.train.data.writer import TraceWriter
from mull.train.recipe import Sampling
from mull.train.rollout import Answer, Sampler
from mull.train.stages.learn import in_passes

VOCABULARY = 300


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> TraceWriter:
    return writer_of(tokenizer_folder(Path(tmp_path_factory.mktemp("t")), VOCABULARY))


def sampled(
    writer: TraceWriter, shape: dict[str, object], questions: int, threads: int
) -> list[list[Answer]]:
    model = tiny_model({**shape, "vocab_size": VOCABULARY}, seed=1)
    sampler = Sampler(model, writer)
    problems = islice(Sums().problems("train", 1), questions)
    asked = [sampler.question(problem, seed) for seed, problem in enumerate(problems)]
    was = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        answers = sampler.answers(asked, Sampling(max_tokens=30), 3)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(was)
    assert sampler.spent.tokens == sum(len(each.ids) for some in answers for each in some)
    return answers


@pytest.mark.parametrize("shape", [LLAMA, DEEPSEEK])
@pytest.mark.parametrize("questions", [1, 2, 7])
def test_answers_do_not_depend_on_how_many_engines_make_them(writer, shape, questions):
    alone = sampled(writer, shape, questions, threads=1)
    assert [len(some) for some in alone] == [3] * questions
    for threads in (2, 5):
        assert sampled(writer, shape, questions, threads) == alone


def test_what_stops_one_engine_stops_all(writer):
    class StopError(Exception):
        pass

    def check() -> None:
        raise StopError

    sampler = Sampler(tiny_model({**LLAMA, "vocab_size": VOCABULARY}), writer, check=check)
    asked = [sampler.question(problem, 0) for problem in islice(Sums().problems("train", 1), 4)]
    was = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(StopError):
            sampler.answers(asked, Sampling(max_tokens=30), 3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(was)


@given(
    lengths=st.lists(st.integers(1, 40), max_size=60),
    most_tokens=st.integers(5, 200),
)
def test_passes_hold_everything_once_and_are_even(lengths, most_tokens):
    examples = [Example([7] * length, [True] * length) for length in lengths]
    batches = in_passes(examples, most_tokens)
    assert sorted(length for batch in batches for length in batch.lengths) == sorted(lengths)
    for batch in batches:
        assert batch.tokens <= most_tokens or len(batch.lengths) == 1
    total = sum(lengths)
    if total <= most_tokens:
        assert len(batches) == (total > 0)
    elif 2 * max(lengths) <= most_tokens:
        # Only the last may be short, and by no more than an example for each of the others.
        even = total / len(batches)
        assert batches[-1].tokens >= even - len(batches) * max(lengths)
