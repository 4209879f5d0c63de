"""Several steps in one native call against the same steps one by one."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_parts import (
    DEEPSEEK,
    EOS,
    LLAMA,
    VOCABULARY,
    chain_of,
    collect,
    drain,
    generate,
    make_engine,
    tiny_model,
    tiny_tokenizer,
)
from hypothesis import settings
from speculation_parts import FreeRows

from mull import kernels
from mull.engine import decode_loop
from mull.engine.decode_loop import DecodeLoop, Drawn
from mull.engine.engine import Engine
from mull.engine.prepare import prepare
from mull.engine.request import Output, Request, SamplingParams
from mull.errors import ModelError
from mull.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(
    not kernels.native_available(), reason="without native kernels every step is computed alone"
)
CPU = torch.device("cpu")
CASES = [
    (LLAMA, "fp32", torch.float32),
    (LLAMA, "q4", torch.int8),
    (DEEPSEEK, "bf16", torch.bfloat16),
    (DEEPSEEK, "q8", torch.int8),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps made by every native call, however long one takes on this machine."""
    monkeypatch.setattr(decode_loop, "LONGEST_S", 3600.0)
    made: list[int] = []
    run = DecodeLoop.run

    def counted(self: DecodeLoop, *args: Any) -> Drawn:
        drawn = run(self, *args)
        made.append(len(drawn.tokens))
        return drawn

    monkeypatch.setattr(DecodeLoop, "run", counted)
    return made


def native_engine(
    shape: dict[str, Any], precision: str, cache: torch.dtype, tokenizer: Tokenizer, **options: Any
) -> Engine:
    model = prepare(tiny_model(shape), precision=precision, device=CPU)
    return make_engine(model, tokenizer, cache_dtype=cache, **options)


def random_ids(chance: random.Random, length: int) -> list[int]:
    return [chance.randrange(256) for _ in range(length)]


def random_request(chance: random.Random, *, is_plain: bool) -> Request:
    """One that is not drawn from the logits as they are makes ordinary steps of all it is in."""
    sampling = SamplingParams(
        max_tokens=chance.randint(1, 60),
        temperature=chance.choice([0.0, 0.7, 1.0]),
        top_p=1.0 if is_plain else chance.choice([1.0, 0.9]),
        presence_penalty=0.0 if is_plain else chance.choice([0.0, 0.0, 0.5]),
        stop_token_ids=random_ids(chance, chance.choice([0, 0, 5, 30])),
        stop=chance.choice([(), (), ("a", "qu")]),
        logprobs=chance.choice([None, 0] if is_plain else [None, 0, 2]),
        tempered_logprobs=chance.random() < 0.5,
        ignore_eos=chance.random() < 0.3,
        seed=chance.randrange(2**32),
        n=chance.choice([1, 1, 3]),
    )
    return Request(
        random_ids(chance, chance.randint(1, 30)),
        sampling,
        starts_in_thinking=(thinks := chance.random() < 0.3),
        think_budget=chance.randint(0, 20) if thinks and chance.random() < 0.7 else None,
        detect_loops=chance.random() < 0.5,
        streams=chance.random() < 0.5,
        speculate=chance.random() < 0.3,
    )


def said(output: Output) -> tuple[Any, ...]:
    details = {k: v for k, v in (output.finish_details or {}).items() if k != "preemptions"}
    return (
        output.token_ids,
        output.logprobs,
        output.thinking,
        output.text,
        output.finish_reason,
        details,
        output.forced_positions,
        output.usage.completion_tokens,
        output.usage.reasoning_tokens,
    )


@pytest.mark.parametrize(("shape", "precision", "cache"), CASES)
def test_whatever_is_asked_the_answers_are_those_of_single_steps(
    shape: dict[str, Any],
    precision: str,
    cache: torch.dtype,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    calls: list[int],
) -> None:
    engine = native_engine(shape, precision, cache, tokenizer, cache_tokens=1024)
    engine.speculation.costs = FreeRows()  # what is guessed must not depend on this machine
    rounds = 16 if settings().max_examples > 10 else 4  # on slower kernels
    for seed in range(rounds):
        chance = random.Random(seed)
        count, is_plain = chance.choice([1, 2, 9, 25]), seed % 4 > 0
        requests = [random_request(chance, is_plain=is_plain) for _ in range(count)]
        answers = []
        for most in (8, 1):
            monkeypatch.setattr(decode_loop, "MOST_STEPS", most)
            ids = [engine.submit(request) for request in requests]
            outputs, events = drain(engine)
            answers.append({(ids.index(i), k): said(out) for (i, k), out in outputs.items()})
            assert engine.blocks.used_blocks == 0
            streamed = sum(len(event.token_ids) for event in events)
            assert streamed == sum(len(out.token_ids) for out in outputs.values())
        assert answers[0] == answers[1]
    assert sum(calls) > 10 * rounds
    assert max(calls) == 8


def test_steps_and_tokens_are_counted_one_by_one(tokenizer: Tokenizer, calls: list[int]) -> None:
    engine = native_engine(LLAMA, "fp32", torch.float32, tokenizer, speculation="off")
    sampling = SamplingParams(max_tokens=41, temperature=0.0, ignore_eos=True)
    (output,) = generate(engine, [Request([1, 2, 3], sampling, detect_loops=False)])
    assert len(output.token_ids) == 41
    assert engine.counters.steps == 41
    assert engine.counters.decode_tokens == 40
    assert sum(calls) == 39  # the prompt's and the first step of a batch are computed alone


def test_an_end_is_the_last_step_of_a_small_batch(tokenizer: Tokenizer, calls: list[int]) -> None:
    model = prepare(chain_of(tokenizer, "abcdefghijklmnop</s>"), precision="fp32", device=CPU)
    engine = make_engine(model, tokenizer, speculation="off")
    request = Request(tokenizer.encode("a"), SamplingParams(temperature=0.0, max_tokens=500))
    (output,) = generate(engine, [request])
    assert output.text == "bcdefghijklmnop"
    assert output.token_ids[-1] == EOS
    assert sum(calls) == 14  # of 16 tokens: none after the end


def test_who_waits_is_next_after_one_step(tokenizer: Tokenizer, calls: list[int]) -> None:
    engine = native_engine(DEEPSEEK, "bf16", torch.bfloat16, tokenizer, speculation="off")
    sampling = SamplingParams(max_tokens=60, temperature=1.0, seed=1, ignore_eos=True)
    request = Request([5, 6, 7], sampling, detect_loops=False)
    (undisturbed,) = generate(engine, [request])
    assert max(calls) > 1
    calls.clear()
    engine.interrupt()
    (interrupted,) = generate(engine, [request])
    assert set(calls) == {1}
    assert interrupted.token_ids == undisturbed.token_ids
    calls.clear()
    engine.interrupt(is_wanted=False)
    generate(engine, [request])
    assert max(calls) > 1


def test_an_interrupted_call_keeps_no_blocks_for_the_steps_it_left_out(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    engine = native_engine(LLAMA, "fp32", torch.float32, tokenizer, speculation="off", block_size=2)
    run = DecodeLoop.run

    def interrupted(self: DecodeLoop, *args: Any) -> Drawn:
        engine.interrupt()  # just as a call of several steps begins
        try:
            return run(self, *args)
        finally:
            engine.interrupt(is_wanted=False)

    monkeypatch.setattr(DecodeLoop, "run", interrupted)
    sampling = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    engine.submit(Request([1, 2, 3], sampling, detect_loops=False))
    while engine.has_work:
        engine.step()
        for seq in engine.scheduler.running:
            assert len(seq.block_table) == engine.blocks.blocks_for(seq.computed)
    assert set(calls) == {1}


def test_a_cache_that_is_full_takes_single_steps_and_gives_the_same(
    tokenizer: Tokenizer, calls: list[int]
) -> None:
    requests = [
        Request([seed, 2, 3], SamplingParams(max_tokens=50, seed=seed, ignore_eos=True))
        for seed in range(6)
    ]
    wide = native_engine(LLAMA, "bf16", torch.bfloat16, tokenizer)
    tight = native_engine(LLAMA, "bf16", torch.bfloat16, tokenizer, cache_tokens=176)
    wanted = [output.token_ids for output in generate(wide, requests)]
    assert min(calls[:-1]) > 1
    calls.clear()
    assert [output.token_ids for output in generate(tight, requests)] == wanted
    assert tight.counters.preemptions > 0
    assert tight.blocks.used_blocks == 0


def test_damage_in_a_later_step_leaves_what_came_before(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    engine = native_engine(LLAMA, "fp32", torch.float32, tokenizer, speculation="off")
    run = DecodeLoop.run

    def damaged(self: DecodeLoop, *args: Any) -> Drawn:
        drawn = run(self, *args)
        tokens = [*drawn.tokens[:2], [-1] * len(drawn.tokens[0])]
        return Drawn(tokens, drawn.logprobs, drawn.hidden_NBD)

    sampling = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    wanted = generate(engine, [Request([1, 2], sampling)])[0].token_ids
    monkeypatch.setattr(DecodeLoop, "run", damaged)
    assert generate(engine, [Request([1, 2], sampling)])[0].token_ids == wanted
    assert max(calls) > 2
    layers = engine.model.model.layers[0]  # type: ignore[index,union-attr]
    engine.submit(Request([1, 2], sampling))
    engine.step()
    engine.step()
    monkeypatch.setattr(DecodeLoop, "run", run)
    layers.final_norm.fill_(math.nan)  # type: ignore[union-attr,operator]
    with pytest.raises(ModelError, match="weights are damaged"):
        engine.step()


def test_a_model_in_torch_takes_single_steps(tokenizer: Tokenizer, calls: list[int]) -> None:
    engine = make_engine(tiny_model(LLAMA), tokenizer)
    sampling = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    engine.submit(Request(list(range(VOCABULARY // 2)), sampling))
    events = []
    while engine.has_work:
        events += engine.step()
    assert len(collect(events)[0, 0].token_ids) == 20
    assert calls == []
