"""Several steps with guesses in one native call against the same steps without any."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_parts import drain, generate, make_engine, tiny_tokenizer
from hypothesis import settings
from mtp_parts import DENSE, MOE, Checked, eager_engine, mtp_model
from test_engine_decode_loop import CPU, random_ids, random_request, said
from test_engine_mtp import alphabet_chain

from mull import kernels
from mull.engine import guess_loop
from mull.engine.engine import Engine
from mull.engine.guess_loop import MOST_STEPS, GuessedTokens, GuessLoop
from mull.engine.prepare import prepare
from mull.engine.request import Request, SamplingParams
from mull.errors import ModelError
from mull.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(
    not kernels.native_available(), reason="without native kernels every step is computed alone"
)
CASES = [
    ("moe", "fp32", torch.float32),
    ("moe", "q8", torch.int8),
    ("dense", "bf16", torch.bfloat16),
    ("dense", "q4", torch.int8),
]
SHAPES = {"moe": MOE, "dense": DENSE}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[GuessedTokens]:
    """What every native call said, however long one takes on this machine."""
    monkeypatch.setattr(guess_loop, "LONGEST_S", 3600.0)
    made: list[GuessedTokens] = []
    run = GuessLoop.run

    def kept(self: GuessLoop, *args: Any, **named: Any) -> GuessedTokens:
        made.append(run(self, *args, **named))
        return made[-1]

    monkeypatch.setattr(GuessLoop, "run", kept)
    return made


def looping(engine: Engine) -> Engine:
    assert engine.speculation.loop is not None
    engine.speculation.loop.most_steps = MOST_STEPS
    return engine


@pytest.mark.parametrize(("shape", "precision", "cache"), CASES)
def test_answers_are_those_without_guesses(
    shape: str,
    precision: str,
    cache: torch.dtype,
    tokenizer: Tokenizer,
    calls: list[GuessedTokens],
) -> None:
    model = mtp_model(SHAPES[shape], precision)
    plain = make_engine(model, tokenizer, speculation="off", cache_dtype=cache)
    engine = looping(eager_engine(model, tokenizer, cache_dtype=cache))
    for seed in range(40 if settings().max_examples > 10 else 10):
        chance = random.Random(seed)
        request = replace(random_request(chance, is_plain=seed % 8 > 0), speculate=True)
        others = [random_request(chance, is_plain=True)] if seed % 5 == 0 else []
        answers = [
            [said(output) for output in generate(one, [request, *others])]
            for one in (plain, engine)
        ]
        assert answers[0] == answers[1]
        assert engine.blocks.used_blocks == 0
        assert not engine.speculation.drafter._guesses  # type: ignore[union-attr]
    assert max(len(each.rounds) for each in calls) > MOST_STEPS // 2
    checked = [(each.rows - 1, each.won - 1) for call in calls for each in call.rounds]
    assert sum(rows for rows, _ in checked) > 100
    assert all(won <= rows for rows, won in checked)


def test_right_guesses_are_won_and_counted(
    tokenizer: Tokenizer, calls: list[GuessedTokens]
) -> None:
    plain = alphabet_chain(tokenizer, "abcdefghijklmnopqrstuvwxyz.a")
    engine = looping(eager_engine(prepare(plain, precision="fp32", device=CPU), tokenizer))
    params = SamplingParams(temperature=0.0, max_tokens=120, ignore_eos=True)
    (output,) = generate(engine, [Request(tokenizer.encode("a"), params, detect_loops=False)])
    assert output.text == ("bcdefghijklmnopqrstuvwxyz.a" * 5)[:120]
    counters = engine.counters
    assert counters.steps < 60
    assert counters.accepted_tokens > 60
    assert counters.decode_tokens == 119
    assert counters.accepted_tokens + counters.steps == 120
    assert len(calls) < 10


def test_an_answer_that_ends_with_a_call_leaves_no_guesses(tokenizer: Tokenizer) -> None:
    plain = alphabet_chain(tokenizer, "abcdefghijklmnopqrstuvwxyz.a")
    engine = eager_engine(prepare(plain, precision="fp32", device=CPU), tokenizer)
    for letter in "cdefghijklmnopqrstuvwxyz":
        params = SamplingParams(temperature=0.0, max_tokens=60, stop=[letter], ignore_eos=True)
        (output,) = generate(engine, [Request(tokenizer.encode("a"), params)])
        assert output.text == "bcdefghijklmnopqrstuvwxyz".partition(letter)[0]
        assert not engine.speculation.drafter._guesses  # type: ignore[union-attr]
        assert engine.blocks.used_blocks == 0


def test_guesses_in_the_calls_are_the_modules_own(tokenizer: Tokenizer) -> None:
    """Those left at the end of a call, of which each call's place is another."""
    engine = looping(eager_engine(mtp_model(MOE, "fp32"), tokenizer, cache_dtype=torch.float32))
    checked = Checked(engine)
    for seed in range(6):
        params = SamplingParams(seed=seed, temperature=seed % 2, max_tokens=90, ignore_eos=True)
        engine.submit(Request(random_ids(random.Random(seed), 7 + seed), params))
        checked.drain()
    assert sum(map(len, checked.places.values())) > 20
    assert checked.deepest >= 3


def test_a_call_ends_for_who_waits_and_at_the_answers_end(
    tokenizer: Tokenizer, calls: list[GuessedTokens]
) -> None:
    engine = looping(eager_engine(mtp_model(MOE, "bf16"), tokenizer))
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=60, ignore_eos=True)
    request = Request([5, 6, 7], params, detect_loops=False)
    (undisturbed,) = generate(engine, [request])
    assert len(undisturbed.token_ids) == 60
    assert max(len(each.rounds) for each in calls) > 1
    calls.clear()
    engine.interrupt()
    (interrupted,) = generate(engine, [request])
    assert interrupted.token_ids == undisturbed.token_ids
    assert not calls
    engine.interrupt(is_wanted=False)
    ends = replace(request, sampling=replace(params, stop_token_ids=[undisturbed.token_ids[30]]))
    (ended,) = generate(engine, [ends])
    first = undisturbed.token_ids.index(undisturbed.token_ids[30])
    assert ended.token_ids == undisturbed.token_ids[: first + 1]
    assert sum(len(each.drawn) for each in calls) <= first + 1  # none after the end


def test_a_cache_without_room_for_a_call_gives_the_same(tokenizer: Tokenizer) -> None:
    model = mtp_model(DENSE, "fp32")
    params = SamplingParams(temperature=0.8, seed=4, max_tokens=70, ignore_eos=True)
    requests = [Request([i, 2, 3], params) for i in range(3)]
    wide = looping(eager_engine(model, tokenizer))
    tight = looping(eager_engine(model, tokenizer, cache_tokens=112))
    wanted = [output.token_ids for output in generate(wide, requests)]
    assert [output.token_ids for output in generate(tight, requests)] == wanted
    assert tight.blocks.used_blocks == 0


def test_damaged_weights_are_said(tokenizer: Tokenizer, calls: list[GuessedTokens]) -> None:
    engine = looping(eager_engine(mtp_model(MOE, "fp32"), tokenizer))
    params = SamplingParams(temperature=0.0, max_tokens=90, ignore_eos=True)
    engine.submit(Request([1, 2], params))
    while not calls:
        engine.step()
    layers = engine.model.model.layers[0]  # type: ignore[index,union-attr]
    layers.final_norm.fill_(float("nan"))  # type: ignore[union-attr,operator]
    with pytest.raises(ModelError, match="weights are damaged"):
        engine.step()
    engine.cancel_all()
    drain(engine)
    assert engine.blocks.used_blocks == 0
