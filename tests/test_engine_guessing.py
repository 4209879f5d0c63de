"""The native chain of guesses against the same in Python, under plans of every kind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from engine_parts import LLAMA, VOCABULARY, generate, make_engine, tiny_model, tiny_tokenizer
from mtp_parts import DENSE, MOE, eager_engine, mtp_model
from test_engine_speculation import random_ids

from mull import kernels
from mull.engine.guess_rates import GuessRates
from mull.engine.guessing import Guesser, Plan, guess_with_torch
from mull.engine.mtp_gate import DEEPEST
from mull.engine.prepare import prepare
from mull.engine.request import Request, SamplingParams
from mull.engine.sequence import Sequence
from mull.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(
    not kernels.native_available(), reason="without native kernels there is no chain"
)
CPU = torch.device("cpu")
CASES = [
    (MOE, "fp32", torch.float32),
    (MOE, "bf16", torch.bfloat16),
    (MOE, "q8", torch.int8),
    (DENSE, "q4", torch.float32),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


class RandomRates(GuessRates):
    """Guesses come true as often as chance says."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._rates = [chance.uniform(0.2, 1.0) for _ in super().rates()]
        self._mean = chance.uniform(0.2, 1.0)

    def rate(self, kind: int) -> float:
        return self._rates[kind]

    def rates(self) -> list[float]:
        return self._rates

    def mean(self, depth: int) -> float:
        return self._mean


def random_plan(chance: random.Random, rooms: list[int]) -> Plan:
    rooms = sorted((min(room, chance.randint(0, DEEPEST - 1)) for room in rooms), reverse=True)
    depth = rooms[0] + 1
    costs = [10.0]
    for _ in range(depth + 1):
        costs.append(costs[-1] + chance.choice([0.1, 1.0, 4.0]))
    least = chance.choice([1, 1, 2])
    return Plan(rooms, len(rooms), costs, RandomRates(chance), depth, least)


@pytest.mark.parametrize(("shape", "precision", "cache_dtype"), CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_native_chain_goes_as_far_and_says_the_same(
    tokenizer, shape, precision, cache_dtype, threads
):
    model = mtp_model(shape, precision)
    engine = eager_engine(model, tokenizer, cache_dtype=cache_dtype)
    chance = random.Random(f"{precision} {threads}")
    for i, temperature in enumerate((0.0, 1.0, 0.5)):
        params = SamplingParams(temperature=temperature, max_tokens=60, ignore_eos=True, seed=i)
        engine.submit(Request(random_ids(5 + i, i), params))
    guesser = Guesser(model, engine.cache, vocabulary=VOCABULARY)
    lengths: set[int] = set()
    was = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(14):
            engine.step()
            seqs: list[Sequence] = [
                seq for seq in engine.scheduler.running if len(seq) == seq.computed + 1
            ][: chance.randint(1, 3)]
            size = engine.cache.block_size
            seqs.sort(key=lambda seq: seq.computed - len(seq.block_table) * size)
            rooms = [len(seq.block_table) * size - seq.computed for seq in seqs]
            plan = random_plan(chance, rooms)
            plan.rooms[:] = [min(pair) for pair in zip(plan.rooms, rooms, strict=True)]
            hidden_BD = torch.randn(len(seqs), model.config.hidden_size)
            with torch.inference_mode():
                native, further = guesser.guess(seqs, hidden_BD, plan)
                oracle, _ = guess_with_torch(model, engine.cache, seqs, hidden_BD, plan, VOCABULARY)
            assert [tokens for tokens, _ in native] == [tokens for tokens, _ in oracle]
            for (_, mine), (_, theirs) in zip(native, oracle, strict=True):
                assert mine == pytest.approx(theirs, rel=1e-3)
            made = max(len(tokens) for tokens, _ in native)
            assert (further > 0) == (made > 1)
            lengths.add(made)
    finally:
        torch.set_num_threads(was)
    assert len(lengths) > 2


def test_damage_leaves_no_time_of_an_earlier_chain_behind(tokenizer):
    model = mtp_model(MOE, "fp32")
    engine = eager_engine(model, tokenizer)
    engine.submit(Request(random_ids(5, 0), SamplingParams(temperature=0, max_tokens=20)))
    engine.step()
    (seq,) = engine.scheduler.running
    guesser = Guesser(model, engine.cache, vocabulary=VOCABULARY)
    plan = Plan([4], 1, [1.0] * 7, GuessRates(), 5, 5)
    width = model.config.hidden_size
    with torch.inference_mode():
        assert guesser.guess([seq], torch.randn(1, width), plan)[1] > 0
        said, further = guesser.guess([seq], torch.full((1, width), float("nan")), plan)
    assert (said, further) == ([([], [])], 0.0)


@pytest.mark.parametrize("shape", [LLAMA, MOE])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_the_program_around_has_made_torchs_default_is_nothing_to_native_code(
    tokenizer, shape, dtype
):
    """The memory that native code writes to has float32's size in any case."""
    model = prepare(tiny_model(shape, mtp=shape is MOE), precision="fp32", device=CPU)
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True, seed=3)
    requests = [Request(random_ids(9, i), params) for i in range(3)]
    tokens = []
    for default in (torch.float32, dtype):
        torch.set_default_dtype(default)
        try:
            mode = "mtp" if shape is MOE else "off"
            engine = make_engine(model, tokenizer, speculation=mode, cache_dtype=torch.float32)
            tokens.append([output.token_ids for output in generate(engine, requests)])
        finally:
            torch.set_default_dtype(torch.float32)
    assert tokens[0] == tokens[1]
