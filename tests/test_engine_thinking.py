"""Budgets, "answer now" and loops, with a model that says exactly what the test wants."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_parts import chain_of, drain, generate, make_engine, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.engine.request import Output, Request, SamplingParams
from mull.engine.thinking import LOOP_EVERY, LoopDetector, find_loop
from mull.text.tokenizer import Tokenizer

# 26 letters round and round, then a sentence end: one full stop every 27 characters.
SENTENCES = "abcdefghijklmnopqrstuvwxyz.a"
ANSWER = "\nXYZ</s>"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads and crawl when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


def think(tokenizer: Tokenizer, texts: list[str], **fields) -> Output:
    """What comes of a prompt "z" that has opened the thinking."""
    sampling = fields.pop("sampling", SamplingParams(max_tokens=600, temperature=0))
    engine = make_engine(chain_of(tokenizer, *texts), tokenizer)
    request = Request(tokenizer.encode("z"), sampling, starts_in_thinking=True, **fields)
    return generate(engine, [request])[0]


# "z" is followed by "." at 1, 28, 55, 82, 109, 136 thinking tokens.
@pytest.mark.parametrize(
    ("budget", "spent"), [(1, 1), (50, 55), (75, 82), (82, 82), (83, 91), (100, 109), (110, 121)]
)
def test_a_budget_closes_at_a_sentence_end_or_a_tenth_over(tokenizer, budget, spent):
    output = think(tokenizer, [SENTENCES, ANSWER], think_budget=budget, detect_loops=False)
    assert output.usage.reasoning_tokens == spent
    assert len(output.thinking) == spent
    assert output.finish_details == {
        "thinking_closed": {"reason": "budget", "thinking_tokens": spent}
    }
    assert output.text == "XYZ"
    assert output.finish_reason == "stop"


def test_forced_tokens_are_kept_counted_and_marked(tokenizer):
    output = think(
        tokenizer,
        [SENTENCES, ANSWER],
        think_budget=10,
        detect_loops=False,
        sampling=SamplingParams(temperature=0, logprobs=0),
    )
    forced = [output.token_ids[place] for place in output.forced_positions]
    assert forced == tokenizer.encode("\n</think>\n\n", allow_special=True)
    assert output.usage.completion_tokens == len(output.token_ids) == 11 + 4 + 4
    places = [i for i, entry in enumerate(output.logprobs) if entry.logprob is None]
    assert places == output.forced_positions
    assert [entry.token_id for entry in output.logprobs] == output.token_ids


def test_a_budget_of_zero_closes_before_anything_is_thought(tokenizer):
    output = think(tokenizer, [SENTENCES, ANSWER], think_budget=0)
    assert output.thinking == ""
    assert output.usage.reasoning_tokens == 0
    assert output.text == "XYZ"
    assert output.forced_positions == [0, 1, 2]


def test_a_model_that_thinks_again_after_its_budget_is_stopped_again(tokenizer):
    model = chain_of(tokenizer, SENTENCES, "\n<think>a")
    engine = make_engine(model, tokenizer)
    request = Request(
        tokenizer.encode("z"),
        SamplingParams(max_tokens=60, temperature=0),
        starts_in_thinking=True,
        think_budget=10,
        detect_loops=False,
    )
    (output,) = generate(engine, [request])
    assert output.usage.reasoning_tokens <= 11 + 10


def test_no_budget_leaves_the_thinking_to_the_model(tokenizer):
    output = think(tokenizer, ["zabc</think>\n", ANSWER])
    assert output.thinking == "abc"
    assert output.text == "XYZ"
    assert output.finish_details == {}
    assert output.forced_positions == []


def test_forcing_never_exceeds_max_tokens(tokenizer):
    for limit in (1, 2, 12, 13, 14, 15):
        sampling = SamplingParams(max_tokens=limit, temperature=0)
        for budget in (0, 10):
            output = think(tokenizer, [SENTENCES, ANSWER], think_budget=budget, sampling=sampling)
            assert len(output.token_ids) <= limit
            if limit <= 2:
                assert output.finish_reason == "length"


def test_answer_now_closes_after_the_next_token(tokenizer):
    engine = make_engine(chain_of(tokenizer, SENTENCES, ANSWER), tokenizer)
    request = Request(
        tokenizer.encode("z"),
        SamplingParams(temperature=0, n=2),
        starts_in_thinking=True,
        detect_loops=False,
    )
    request_id = engine.submit(request)
    for _ in range(20):
        engine.step()
    assert engine.answer_now(request_id)
    outputs, _ = drain(engine)
    for index in range(2):
        output = outputs[request_id, index]
        assert output.usage.reasoning_tokens == 21
        assert output.finish_details["thinking_closed"]["reason"] == "answer_now"
        assert output.text == "XYZ"
    assert not engine.answer_now(request_id)


def test_an_endless_thinking_is_closed_and_reported(tokenizer):
    output = think(tokenizer, ["zabcdea", ANSWER])
    loop = output.finish_details["loop"]
    assert (loop["in"], loop["period"]) == ("thinking", 5)
    assert loop["repeats"] >= 256 // 5
    assert output.finish_details["thinking_closed"]["reason"] == "loop"
    assert 256 <= output.usage.reasoning_tokens < 256 + LOOP_EVERY + 5
    assert output.text == "XYZ"
    assert output.finish_reason == "stop"


def test_a_thinking_that_opens_again_and_loops_again_is_closed_again(tokenizer):
    output = think(
        tokenizer, ["zabcdea", "\n<think>z"], sampling=SamplingParams(max_tokens=700, temperature=0)
    )
    assert output.usage.completion_tokens == 700
    assert output.token_ids.count(tokenizer.special_ids["</think>"]) == 2


def test_an_endless_answer_is_ended_and_reported(tokenizer):
    engine = make_engine(chain_of(tokenizer, "abca"), tokenizer)
    (output,) = generate(engine, [Request(tokenizer.encode("a"), SamplingParams(temperature=0))])
    assert output.finish_reason == "length"
    assert output.finish_details["loop"]["in"] == "answer"
    assert output.finish_details["loop"]["period"] == 3
    assert 256 <= output.usage.completion_tokens < 256 + LOOP_EVERY


def test_loops_are_left_alone_when_detection_is_off(tokenizer):
    engine = make_engine(chain_of(tokenizer, "abca"), tokenizer)
    params = SamplingParams(temperature=0, max_tokens=500)
    request = Request(tokenizer.encode("a"), params, detect_loops=False)
    (output,) = generate(engine, [request])
    assert output.usage.completion_tokens == 500
    assert output.finish_details == {}


@given(
    head=st.lists(st.integers(0, 50), max_size=300),
    period=st.lists(st.integers(0, 50), min_size=1, max_size=60),
    repeats=st.integers(1, 400),
    rest=st.integers(0, 59),
)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_a_loop_is_found_exactly_where_there_is_one(head, period, repeats, rest):
    ids = head + period * repeats + period[: rest % len(period)]
    loop = find_loop(ids)
    assert (loop is not None) == (naive_period(ids) is not None)
    if loop is not None:
        assert loop.period == naive_period(ids)
        tail = ids[-loop.period * loop.repeats :]
        assert tail == tail[: loop.period] * loop.repeats
        assert loop.repeats >= 8


def naive_period(ids: list[int]) -> int | None:
    """Shortest period of a tail of at least 256 tokens and 8 repeats within the last 4,096."""
    ids = ids[-4096:]
    for period in range(1, len(ids) // 8 + 1):
        needed = max(256, 8 * period)
        if needed <= len(ids):
            tail = ids[-needed:]
            if all(tail[i] == tail[i - period] for i in range(period, needed)):
                return period
    return None


def test_ordinary_text_is_no_loop():
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 3, size=20).tolist() for _ in range(5)]
    detector = LoopDetector()
    for _ in range(400):
        for token in words[rng.integers(5)]:
            assert detector.push(token) is None


def test_the_detector_finds_a_loop_late_in_a_long_text():
    detector = LoopDetector()
    rng = np.random.default_rng(0)
    for token in rng.integers(0, 1000, size=20_000).tolist():
        assert detector.push(token) is None
    found = [loop for _ in range(60) for t in range(10) if (loop := detector.push(t)) is not None]
    assert found[0].period == 10
