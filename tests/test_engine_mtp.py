"""Multi-token prediction as a drafter: the guesses are the module's own, and change no answer."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_parts import (
    LLAMA,
    collect,
    drain,
    generate,
    make_engine,
    tiny_model,
    tiny_tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from mtp_parts import DENSE, MOE, Checked, chain_with_mtp, eager_engine, mtp_model
from speculation_parts import CostlyRows, FreeRows
from test_engine_scheduler import check_ownership
from test_engine_speculation import KINDS, check_drafts_were_tried, random_ids, requests_of, said

import mull
from mull import kernels, weights
from mull.engine import decode_loop
from mull.engine.decode_loop import DecodeLoop
from mull.engine.engine import Engine
from mull.engine.guess_rates import GuessRates
from mull.engine.mtp_gate import Choice, MtpGate
from mull.engine.request import Output, Request, SamplingParams
from mull.engine.step_costs import StepCosts
from mull.errors import RequestError
from mull.model.config import ModelConfig
from mull.model.transformer import CausalLM
from mull.text.tokenizer import Tokenizer

SHAPES = {"moe": MOE, "dense": DENSE}
MODELS = [f"{shape} {kind}" for shape in SHAPES for kind in ("plain", "fp32", "bf16", "q8")]


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


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> CausalLM:
    shape, precision = request.param.split()
    return mtp_model(SHAPES[shape], precision)


@pytest.fixture(scope="module")
def moe() -> CausalLM:
    return mtp_model(MOE, "fp32")


def plain_engine(model: CausalLM, tokenizer: Tokenizer, **options: Any) -> Engine:
    return make_engine(model, tokenizer, speculation="off", **options)


def answers(outputs: list[Output]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("kind", list(KINDS))
def test_with_and_without_mtp_every_token_is_the_same(model, tokenizer, kind):
    requests = requests_of(kind, count=4, max_tokens=20)
    expected = answers(generate(plain_engine(model, tokenizer), requests))
    engine = eager_engine(model, tokenizer)
    assert answers(generate(engine, requests)) == expected
    for request, ids in zip(requests, expected, strict=True):
        (alone,) = generate(engine, [request])
        assert alone.token_ids == ids
    assert engine.counters.drafted_tokens > 20
    assert engine.counters.used_blocks == 0


def test_the_guess_is_what_the_module_says_over_the_whole_sequence(model, tokenizer):
    """Drafts are rejected nearly always here, at one to four tokens."""
    engine = eager_engine(model, tokenizer, cache_dtype=torch.float32)
    checked = Checked(engine)
    requests = [*requests_of("greedy", count=3), *requests_of("recommended", count=2)]
    for request in requests:
        engine.submit(request)
    checked.drain()
    assert len(checked.places) == 5
    assert all(len(places) > 25 for places in checked.places.values())
    assert checked.deepest >= 3


def check_random_guesses(engine: Engine, checked: Checked, least: int) -> None:
    assert sum(map(len, checked.places.values())) >= least
    assert engine.counters.drafted_tokens > 0
    assert engine.counters.used_blocks == 0


@pytest.mark.parametrize("block_size", [16, 5])
def test_chunked_prompts_leave_the_keys_that_whole_ones_do(moe, tokenizer, block_size):
    requests = [
        replace(request, prompt_ids=random_ids(length, length))
        for request, length in zip(requests_of("plain", 3, 12), (40, 64, 33), strict=True)
    ]
    expected = answers(generate(plain_engine(moe, tokenizer), requests))
    engine = eager_engine(moe, tokenizer, max_batch_tokens=11, max_running=4, block_size=block_size)
    checked = Checked(engine)
    ids = [engine.submit(request) for request in requests]
    outputs = collect(checked.drain())
    assert [outputs[i, 0].token_ids for i in ids] == expected
    check_random_guesses(engine, checked, 25)


@pytest.mark.parametrize("shared", [32, 35])
def test_keys_found_in_the_cache_are_those_of_the_token_that_follows_there(moe, tokenizer, shared):
    """Prompts that part right after a full block, or inside one: the block's last key of the module
    depends on the token after it."""
    beginning = random_ids(shared, 3)
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    engine = eager_engine(moe, tokenizer, block_size=8)
    checked = Checked(engine)
    for token in (1, 2, 1):
        request = Request([*beginning, token, 7, 8], params)
        (expected,) = generate(plain_engine(moe, tokenizer), [request])
        request_id = engine.submit(request)
        output = collect(checked.drain())[request_id, 0]
        assert output.token_ids == expected.token_ids
        cached = output.usage.cached_tokens
        assert len(checked.places[request_id, 0]) >= 4
    assert cached == 32
    # The next turn of a conversation finds the answer's blocks too.
    whole = [*beginning, 1, 7, 8, *output.token_ids]
    request_id = engine.submit(Request([*whole, 5], params))
    later = collect(checked.drain())[request_id, 0]
    assert later.usage.cached_tokens == (len(whole) - 1) // 8 * 8
    assert len(checked.places[request_id, 0]) >= 4


@pytest.mark.parametrize("length", [21, 24, 25])
def test_forks_guess_each_from_their_own_token(moe, tokenizer, length):
    """A prompt of whole blocks (24): even its last block is not shared, as its last key is not."""
    params = SamplingParams(temperature=1.0, seed=5, n=4, max_tokens=14, ignore_eos=True)
    request = Request(random_ids(length, 1), params)
    plain = plain_engine(moe, tokenizer, block_size=8)
    plain.submit(request)
    engine = eager_engine(moe, tokenizer, block_size=8)
    checked = Checked(engine)
    engine.submit(request)
    found = collect(checked.drain())
    for key, output in drain(plain)[0].items():
        assert found[key].token_ids == output.token_ids
    assert {places[0] for places in checked.places.values()} == {length + 1}
    assert len(checked.places) == 4
    check_random_guesses(engine, checked, 40)


def test_preemption_changes_no_answer_and_no_guess(moe, tokenizer):
    params = SamplingParams(max_tokens=30, seed=3, temperature=0.5, n=2, ignore_eos=True)
    requests = [Request(random_ids(20 + i, i) * 2, params) for i in range(3)]
    plain = plain_engine(moe, tokenizer)
    tight = eager_engine(moe, tokenizer, cache_tokens=176)
    checked = Checked(tight)
    for engine in (plain, tight):
        for request in requests:
            engine.submit(request)
    expected, found = drain(plain)[0], collect(checked.drain())
    assert tight.counters.preemptions > 0
    for key, output in expected.items():
        assert found[key].token_ids == output.token_ids
        assert found[key].finish_details.get("preemptions") or len(checked.places[key]) > 25
    assert any(output.finish_details.get("preemptions") for output in found.values())
    check_random_guesses(tight, checked, 100)


def alphabet_chain(tokenizer: Tokenizer, *texts: str, wrong: str = "") -> CausalLM:
    successors: dict[int, int] = {}
    for text in texts:
        for last, following in itertools.pairwise(tokenizer.encode(text, allow_special=True)):
            assert successors.setdefault(last, following) == following, text
    return chain_with_mtp(successors, wrong=frozenset(tokenizer.encode(wrong) if wrong else ()))


def test_thinking_is_closed_at_the_same_token_in_the_middle_of_a_draft(tokenizer):
    model = alphabet_chain(tokenizer, "abcdefghijklmnopqrstuvwxyz.a", "\nXYZ</s>", wrong="gq")
    params = SamplingParams(temperature=0, max_tokens=200, logprobs=0)
    for budget in (1, 3, 10, 27, 50):
        request = Request(
            tokenizer.encode("z"),
            params,
            starts_in_thinking=True,
            think_budget=budget,
            detect_loops=False,
        )
        (expected,) = generate(plain_engine(model, tokenizer), [request])
        engine = eager_engine(model, tokenizer)
        checked = Checked(engine)
        request_id = engine.submit(request)
        found = collect(checked.drain())[request_id, 0]
        assert said(found) == said(expected)
        assert found.forced_positions
        assert engine.counters.accepted_tokens > 0


def test_a_module_that_foresees_saves_steps(tokenizer):
    model = alphabet_chain(tokenizer, "abcdefghijklmnopqrstuvwxyz.a")
    params = SamplingParams(temperature=0, max_tokens=100)
    requests = [Request(tokenizer.encode(letter), params, detect_loops=False) for letter in "agm"]
    plain = plain_engine(model, tokenizer)
    expected = answers(generate(plain, requests))
    engine = eager_engine(model, tokenizer)
    assert answers(generate(engine, requests)) == expected
    assert engine.counters.steps < 0.3 * plain.counters.steps
    counters = engine.counters
    assert counters.accepted_tokens > 0.9 * counters.drafted_tokens
    assert counters.decode_tokens == plain.counters.decode_tokens
    partly = alphabet_chain(tokenizer, "abcdefghijklmnopqrstuvwxyz.a", wrong="cfilorux")
    engine = eager_engine(partly, tokenizer)
    assert answers(generate(engine, requests)) == expected
    check_drafts_were_tried(engine)


def engine_with_costs(model: CausalLM, tokenizer: Tokenizer, *, guess: float) -> Engine:
    """Steps that take 6 and 1 for each row, whatever the clock says; a guess takes `guess`."""
    engine = make_engine(model, tokenizer)
    costs = engine.speculation.costs
    costs.extra = lambda what: 0.0 if what == "fill" else guess  # type: ignore[method-assign]
    costs.observe = lambda rows, seconds: None  # type: ignore[method-assign]
    return engine


def test_guesses_are_made_where_they_pay_and_no_more_where_they_do_not(moe, tokenizer):
    foresees = alphabet_chain(tokenizer, "abcdefghijklmnopqrstuvwxyz.a")
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    (letter,) = tokenizer.encode("a")
    request = Request([letter], params, detect_loops=False)
    cheap = engine_with_costs(foresees, tokenizer, guess=0.5)
    generate(cheap, [request])
    assert cheap.counters.accepted_tokens > 100
    dear = engine_with_costs(foresees, tokenizer, guess=50.0)
    useless = engine_with_costs(moe, tokenizer, guess=0.5)
    for engine in (dear, useless):
        generate(engine, [replace(request, prompt_ids=random_ids(9, 1))])  # tries what it is worth
        before = engine.counters.drafted_tokens
        generate(engine, [request])
        assert engine.counters.drafted_tokens - before < 5, "a probe now and then"
    crowded = make_engine(foresees, tokenizer)
    crowded.speculation.costs = CostlyRows()
    generate(crowded, [request] * 4)
    assert crowded.counters.drafted_tokens == 0


class OneAfterTheOther(MtpGate):
    """Guesses, follows and sleeps for a step or a few, whatever that brings."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = random.Random(0)
        self.choice: Choice = "guess"

    def choose(
        self,
        ends: int,
        costs: StepCosts,
        rates: GuessRates,
        *,
        is_decode: bool,
        steps: int = 1,
    ) -> Choice:
        if self.dice.random() < 0.15:
            self.choice = self.dice.choice(["guess", "guess", "follow", "sleep"])
        return self.choice


def test_where_it_never_pays_it_sleeps_and_wakes_when_few_are_left(tokenizer):
    model = alphabet_chain(tokenizer, "abcdefghijklmnopqrstuvwxyz.a")
    engine = make_engine(model, tokenizer)
    engine.speculation.costs = CostlyRows()
    checked = Checked(engine)
    followed: list[int] = []
    mtp_hidden = model.mtp_hidden

    def counted(hidden_TD: torch.Tensor, *rest: Any) -> torch.Tensor:
        followed.append(len(hidden_TD))
        return mtp_hidden(hidden_TD, *rest)

    model.mtp_hidden = counted  # type: ignore[method-assign]
    params = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
    request = Request(tokenizer.encode("a"), params, detect_loops=False)
    for _ in range(4):
        engine.submit(request)
    for _ in range(100):
        engine.step()
    assert engine.speculation.gate.is_asleep
    assert len(followed) < 100  # of its 100 steps and some further guesses
    # Now that guesses would cost nothing, one alone wakes it.
    checked.drain()
    engine.speculation.costs = FreeRows()
    late = engine.submit(replace(request, prompt_ids=tokenizer.encode("xyz.abc")))
    checked.drain()
    assert not engine.speculation.gate.is_asleep
    assert late not in {request_id for request_id, _ in checked.places}, "begun in its sleep"
    last = engine.submit(replace(request, prompt_ids=tokenizer.encode("ghijklm")))
    checked.drain()
    assert len(checked.places[last, 0]) > 15  # with up to nine tokens a step
    assert engine.counters.accepted_tokens > 100


def test_each_look_round_in_vain_makes_the_next_night_longer() -> None:
    gate, costs, rates = MtpGate(), CostlyRows(), GuessRates()
    nights = [0]
    for _ in range(40_000):
        if gate.choose(1, costs, rates, is_decode=True) == "sleep":
            nights[-1] += 1
        elif nights[-1]:
            nights.append(0)
    assert len(nights) > 3
    for shorter, longer in itertools.pairwise(nights[:-1]):
        assert 1.9 < longer / shorter < 2.1


def test_what_steps_save_in_one_call_counts_against_guesses() -> None:
    gate, costs, rates = MtpGate(), StepCosts(), GuessRates()
    for _ in range(50):
        costs.observe(1, 1.0)
        costs.observe(2, 1.05)
        costs.observe(3, 1.1)
        for depth in range(2):
            rates.judge(rates.kind(depth, 0.99), True)
    assert gate.pays(1, costs, rates)
    assert costs.cost_in_a_call(1) == costs.cost(1)
    for _ in range(30):
        costs.observe_in_a_call(1, 0.25)
    assert costs.cost_in_a_call(1) == pytest.approx(costs.cost(1) / 4, rel=0.1)
    assert not gate.pays(1, costs, rates)


@pytest.mark.parametrize("block_size", [16, 4])
def test_nobody_guesses_from_what_was_computed_in_its_sleep(moe, tokenizer, block_size):
    params = SamplingParams(seed=3, temperature=0.8, n=2, max_tokens=20, ignore_eos=True)
    shared = random_ids(30, 5)
    requests = [Request([*shared[: 10 * (i % 4)], i, 2], params) for i in range(24)]
    plain = plain_engine(moe, tokenizer)
    tight = eager_engine(moe, tokenizer, cache_tokens=240, block_size=block_size)
    tight.speculation.gate = OneAfterTheOther()
    checked = Checked(tight)
    for engine in (plain, tight):
        for request in requests:
            engine.submit(request)
    expected, found = drain(plain)[0], collect(checked.drain())
    for key, output in expected.items():
        assert found[key].token_ids == output.token_ids
    assert tight.counters.preemptions > 0
    check_random_guesses(tight, checked, 100)


@pytest.mark.skipif(not kernels.native_available(), reason="without them steps are computed alone")
@pytest.mark.parametrize("block_size", [16, 4])
def test_guesses_go_on_after_several_steps_in_one_call(moe, tokenizer, block_size, monkeypatch):
    made: list[int] = []
    run = DecodeLoop.run

    def counted(self, *args):
        drawn = run(self, *args)
        made.append(len(drawn.tokens))
        return drawn

    monkeypatch.setattr(DecodeLoop, "run", counted)
    monkeypatch.setattr(decode_loop, "LONGEST_S", 3600.0)  # however slow the machine
    params = SamplingParams(seed=3, temperature=0.8, max_tokens=200, ignore_eos=True)
    requests = [Request([*random_ids(9, 5 + i), i], params) for i in range(3)]
    plain = plain_engine(moe, tokenizer)
    engine = eager_engine(moe, tokenizer, block_size=block_size)
    engine.speculation.gate = OneAfterTheOther()
    expected = answers(generate(plain, requests))
    made.clear()
    checked = Checked(engine)
    ids = [engine.submit(request) for request in requests]
    outputs = collect(checked.drain())
    assert [outputs[i, 0].token_ids for i in ids] == expected
    assert sum(made) > 40
    assert max(made) > 4
    check_random_guesses(engine, checked, 60)


def test_who_does_not_want_drafts_gets_none_but_keys_for_others(moe, tokenizer):
    engine = eager_engine(moe, tokenizer)
    checked = Checked(engine)
    (request,) = requests_of("greedy", 1)
    request_id = engine.submit(replace(request, speculate=False))
    ids = collect(checked.drain())[request_id, 0].token_ids
    assert engine.counters.drafted_tokens == 0
    assert not checked.places
    engine.submit(replace(request, prompt_ids=[*request.prompt_ids, *ids, 3]))
    checked.drain()
    assert engine.counters.cached_tokens > 0
    check_random_guesses(engine, checked, 25)


def test_a_damaged_module_costs_speed_and_nothing_else(tokenizer):
    requests = requests_of("recommended", 2)
    expected = answers(generate(plain_engine(mtp_model(MOE, "plain"), tokenizer), requests))
    damaged = mtp_model(MOE, "plain")
    with torch.no_grad():
        damaged.mtp[0].eh_proj.weight.fill_(float("nan"))
    engine = eager_engine(damaged, tokenizer)
    assert answers(generate(engine, requests)) == expected
    assert engine.counters.drafted_tokens == 0


def test_auto_is_mtp_for_a_model_that_has_it_and_mtp_is_refused_elsewhere(moe, tokenizer):
    assert make_engine(moe, tokenizer).drafter is not None
    llama = tiny_model(LLAMA)
    for engine in (
        make_engine(llama, tokenizer),
        make_engine(moe, tokenizer, speculation="ngram"),
        make_engine(moe, tokenizer, speculation="off"),
    ):
        assert engine.drafter is None
        assert engine.blocks.lookahead == 0
    with pytest.raises(RequestError, match="has no multi-token-prediction modules: use auto or"):
        make_engine(llama, tokenizer, speculation="mtp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_has_a_layer_for_the_module_where_it_is_used(moe, tokenizer, dtype):
    sizes = {"cache_tokens": 512, "cache_dtype": dtype}
    with_it = make_engine(moe, tokenizer, **sizes)
    without = make_engine(moe, tokenizer, speculation="ngram", **sizes)
    assert with_it.cache.bytes == 512 * moe.config.cache_bytes_per_token(dtype, extra_layers=1)
    assert 3 * with_it.cache.bytes == 4 * without.cache.bytes
    by_bytes = make_engine(moe, tokenizer, cache_tokens=None, cache_bytes=300_000)
    assert 280_000 < by_bytes.cache.bytes <= 300_000


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(tmp_path_factory.mktemp("model"))
    weights.save_folder(tiny_model(MOE, mtp=True), path / "whole")
    weights.save_folder(tiny_model(DENSE), path / "without")
    for name in ("whole", "without"):
        tiny_tokenizer(path / name)
    return path


@pytest.mark.parametrize("precision", ["fp32", "q8"])
def test_loading_brings_the_modules_where_the_mode_needs_them(folder, precision, monkeypatch):
    monkeypatch.setenv("MULL_HOME", str(folder / "home"))
    path = str(folder / "whole")
    options = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    prompt = random_ids(10, 1)
    said_by: dict[str, list[int]] = {}
    for mode in ("off", "mtp", "auto", "mtp"):
        with mull.load(path, precision=precision, cache_tokens=512, speculation=mode) as llm:
            said_by[mode] = llm.generate(prompt, **options).token_ids
            assert (llm.engine.drafter is not None) == (mode != "off")
            assert bool(len(llm.engine.model.mtp)) == (mode != "off")
    assert said_by["off"] == said_by["mtp"] == said_by["auto"]


def test_a_model_without_modules_is_loaded_without_or_refused(folder):
    path = str(folder / "without")
    with mull.load(path, precision="fp32", cache_tokens=512) as llm:
        assert llm.engine.drafter is None
    with pytest.raises(RequestError, match=r"speculation is 'mtp', but .* has no multi-token"):
        mull.load(path, precision="fp32", speculation="mtp")


def test_auto_leaves_the_modules_where_memory_is_short(folder, monkeypatch):
    config = ModelConfig.from_dict(MOE)
    needed = weights.memory.needed_bytes(config, "fp32", mtp=False)
    assert weights.memory.needed_bytes(config, "fp32", mtp=True) > needed
    monkeypatch.setattr(weights.memory, "available_memory", lambda: needed)
    with mull.load(str(folder / "whole"), precision="fp32", cache_tokens=512) as llm:
        assert llm.engine.drafter is None
    with pytest.raises(mull.WeightsError, match="needs"):
        mull.load(str(folder / "whole"), precision="fp32", speculation="mtp")


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 5), st.integers(1, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    min_size=5,
    max_size=20,
)


@pytest.fixture(scope="module")
def expected(tokenizer: Tokenizer) -> tuple[CausalLM, list[tuple[Request, list[int]]]]:
    """Prompts that begin alike, and what each gives without drafts."""
    model = mtp_model(DENSE, "fp32")
    shared = random_ids(40, 77)
    params = SamplingParams(temperature=0, ignore_eos=True)
    requests = [
        Request(shared[: 8 * i] + random_ids(3 + i, i), replace(params, max_tokens=6 + 5 * (i % 4)))
        for i in range(6)
    ]
    outputs = generate(plain_engine(model, tokenizer), requests)
    return model, [(r, o.token_ids) for r, o in zip(requests, outputs, strict=True)]


@given(operations=OPERATIONS, blocks=st.integers(12, 30))
@settings(max_examples=25, derandomize=True, deadline=None)
def test_whatever_happens_meanwhile_guesses_stay_true_and_no_token_changes(
    tokenizer, expected, operations, blocks
):
    model, known = expected
    sizes = {"cache_tokens": 8 * blocks, "block_size": 8}
    engine = eager_engine(model, tokenizer, max_batch_tokens=24, max_running=5, **sizes)
    checked = Checked(engine)
    wanted: dict[int, list[int]] = {}
    outputs: dict[tuple[int, int], Output] = {}
    for name, *arguments in operations:
        if name == "submit":
            request, ids = known[arguments[0]]
            sampling = replace(request.sampling, n=arguments[1])
            wanted[engine.submit(replace(request, sampling=sampling))] = ids
        elif name == "cancel":
            engine.cancel(arguments[0])
        else:
            for _ in range(arguments[0]):
                outputs.update(collect(checked.step()))
                check_ownership(engine.blocks, engine.scheduler.running, block_size=8)
    outputs.update(collect(checked.drain()))
    assert engine.counters.used_blocks == 0
    for (request_id, _), output in outputs.items():
        complete = output.finish_reason != "cancelled"
        ids = wanted[request_id]
        assert output.token_ids == (ids if complete else ids[: len(output.token_ids)])
