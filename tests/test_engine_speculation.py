"""Guessing ahead changes the number of steps and nothing else: every answer is what it was."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_parts import (
    DEEPSEEK,
    LLAMA,
    chain_of,
    collect,
    drain,
    generate,
    make_engine,
    packed_logits,
    tiny_model,
    tiny_tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from speculation_parts import CostlyRows, eager_engine, prophetic_engine
from test_engine_scheduler import check_ownership

import mull
from mull.engine.engine import Engine
from mull.engine.prepare import prepare
from mull.engine.request import Output, Request, SamplingParams
from mull.errors import RequestError
from mull.model.transformer import CausalLM
from mull.text.tokenizer import Tokenizer

Answers = dict[tuple[int, ...], list[int]]


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


@pytest.fixture(scope="module", params=["llama fp32", "llama bf16", "deepseek fp32"])
def model(request: pytest.FixtureRequest) -> CausalLM:
    """As it is served: with native layers where there are any."""
    family, precision = request.param.split()
    plain = tiny_model(LLAMA if family == "llama" else DEEPSEEK)
    return prepare(plain, precision=precision, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def llama() -> CausalLM:
    return prepare(tiny_model(LLAMA), precision="fp32", device=torch.device("cpu"))


def random_ids(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length,), generator=generator).tolist()


KINDS = {
    "greedy": {"temperature": 0},
    "plain": {"temperature": 1.0},
    "recommended": {"temperature": 0.6, "top_p": 0.95},
    "filtered": {"temperature": 0.8, "top_k": 20, "min_p": 0.02},
    "penalised": {"temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    "penalised greedy": {"temperature": 0, "presence_penalty": 0.8, "repetition_penalty": 1.2},
    "biased": {"temperature": 0.9, "logit_bias": {65: 3.0, 66: -5.0}, "top_k": 30},
}


def requests_of(kind: str, count: int = 6, max_tokens: int = 30) -> list[Request]:
    fields = {"max_tokens": max_tokens, "ignore_eos": True, "logprobs": 1, **KINDS[kind]}
    return [
        Request(random_ids(9 + 5 * i, i), SamplingParams(seed=i, **fields), detect_loops=False)
        for i in range(count)
    ]


def known_answers(engine: Engine, requests: list[Request]) -> tuple[list[Output], Answers]:
    outputs = generate(engine, requests)
    pairs = zip(requests, outputs, strict=True)
    return outputs, {tuple(r.prompt_ids): o.token_ids for r, o in pairs}


def said(output: Output) -> tuple[object, ...]:
    """All of an answer but its times."""
    assert output.token_ids
    return (
        output.token_ids,
        output.text,
        output.thinking,
        output.logprobs,
        output.finish_reason,
        output.finish_details,
        output.forced_positions,
        output.usage,
    )


def check_drafts_were_tried(engine: Engine) -> None:
    counters = engine.counters
    assert 0 < counters.accepted_tokens < counters.drafted_tokens
    assert counters.used_blocks == 0
    assert not engine.speculation._lookups


@pytest.mark.parametrize("kind", list(KINDS))
def test_drafts_right_and_wrong_give_the_answers_of_one_token_a_step(model, tokenizer, kind):
    requests = requests_of(kind)
    plain = make_engine(model, tokenizer, speculation="off")
    expected, answers = known_answers(plain, requests)
    guessing = prophetic_engine(model, tokenizer, answers)
    found = generate(guessing, requests)
    for ours, other in zip(found, expected, strict=True):
        assert ours.token_ids == other.token_ids
        ours_p, other_p = ([p.logprob for p in o.logprobs or []] for o in (ours, other))
        # MLA runs partly in torch, whose sums depend on the number of rows.
        assert ours_p == pytest.approx(other_p, abs=0.0 if not model.config.is_mla else 1e-4)
    check_drafts_were_tried(guessing)
    assert guessing.counters.steps < 0.7 * plain.counters.steps
    assert plain.counters.drafted_tokens == 0


def test_prompt_lookup_drafts_and_changes_nothing(llama, tokenizer):
    text = random_ids(60, 1)
    fields = {"max_tokens": 120, "ignore_eos": True}
    requests = [
        Request(text * 2, SamplingParams(seed=seed, temperature=temperature, **fields))
        for seed, temperature in enumerate((0.0, 0.0, 0.3, 0.3, 0.6))
    ]
    expected = generate(make_engine(llama, tokenizer, speculation="off"), requests)
    for engine in (eager_engine(llama, tokenizer), make_engine(llama, tokenizer)):
        found = generate(engine, requests)
        assert [said(o) for o in found] == [said(o) for o in expected]
    eager = eager_engine(llama, tokenizer)
    generate(eager, requests)
    check_drafts_were_tried(eager)


def test_drawn_tokens_follow_the_models_distribution(llama, tokenizer):
    """Chi-square over triples: the second and third token are drawn in a step with a draft."""
    prompt = random_ids(12, 3)
    params = SamplingParams(temperature=1.2, top_k=3, max_tokens=3, n=256, ignore_eos=True)
    likely: list[int] = []
    for _ in range(3):
        likely.append(int(packed_logits(llama, [*prompt, *likely])[-1][:256].argmax()))
    engine = prophetic_engine(llama, tokenizer, {tuple(prompt): likely}, max_running=256)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(8):
        engine.submit(Request(prompt, replace(params, seed=seed)))
        counts.update(tuple(output.token_ids) for output in drain(engine)[0].values())
    check_drafts_were_tried(engine)
    total = sum(counts.values())
    statistic = 0.0
    for triple, chance in triples(llama, prompt, temperature=1.2, top_k=3).items():
        statistic += (counts.pop(triple, 0) - total * chance) ** 2 / (total * chance)
    assert not counts, "no triple the filters forbid"
    assert statistic < 54.1  # 26 degrees of freedom, exceeded once in a thousand


def triples(
    model: CausalLM, prompt: list[int], *, temperature: float, top_k: int
) -> dict[tuple[int, ...], float]:
    """The exact distribution of the first three tokens."""
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer: dict[tuple[int, ...], float] = {}
        for ids, chance in chances.items():
            logits = packed_logits(model, [*prompt, *ids])[-1]
            best = logits.topk(top_k)
            weights = (best.values / temperature).softmax(-1).tolist()
            for token, weight in zip(best.indices.tolist(), weights, strict=True):
                longer[(*ids, token)] = chance * weight
        chances = longer
    return chances


def test_an_end_a_stop_string_and_a_limit_inside_a_draft_end_the_answer_there(tokenizer):
    model = chain_of(tokenizer, "abcdefghijklmn</s>")
    cases = {
        "end": SamplingParams(temperature=0),
        "stop id": SamplingParams(temperature=0, stop_token_ids=tokenizer.encode("k")),
        "stop string": SamplingParams(temperature=0, stop=["hij"]),
        "limit": SamplingParams(temperature=0, max_tokens=7, logprobs=0),
    }
    requests = [Request(tokenizer.encode("a"), params) for params in cases.values()]
    expected, _ = known_answers(make_engine(model, tokenizer, speculation="off"), requests)
    whole = {tuple(tokenizer.encode("a")): expected[0].token_ids}
    for _ in range(5):
        engine = prophetic_engine(model, tokenizer, whole)
        found = generate(engine, requests)
        assert [said(output) for output in found] == [said(output) for output in expected]
        check_drafts_were_tried(engine)
    assert [output.text for output in expected] == [
        "bcdefghijklmn",
        "bcdefghij",
        "bcdefg",
        "bcdefgh",
    ]


def test_thinking_is_closed_at_the_same_token_in_the_middle_of_a_draft(tokenizer):
    model = chain_of(tokenizer, "abcdefghijklmnopqrstuvwxyz.a", "\nXYZ</s>")
    prompt = tokenizer.encode("z")
    params = SamplingParams(temperature=0, max_tokens=200, logprobs=0)
    for budget in (1, 3, 10, 27, 50):
        request = Request(
            prompt, params, starts_in_thinking=True, think_budget=budget, detect_loops=False
        )
        (expected,) = generate(make_engine(model, tokenizer, speculation="off"), [request])
        unclosed = tokenizer.encode(".abcdefghijklmnopqrstuvwxyz" * 4)
        engine = prophetic_engine(model, tokenizer, {tuple(prompt): unclosed})
        (found,) = generate(engine, [request])
        assert said(found) == said(expected)
        assert found.forced_positions
        (again,) = generate(eager_engine(model, tokenizer), [request])
        assert said(again) == said(expected)


def test_answer_now_and_cancel_between_drafts(tokenizer):
    model = chain_of(tokenizer, "abcdefghijklmnopqrstuvwxyza", "\nXYZ</s>")
    prompt = tokenizer.encode("z")
    request = Request(prompt, SamplingParams(temperature=0), starts_in_thinking=True)
    said_on = {tuple(prompt): tokenizer.encode("abcdefghijklmnopqrstuvwxyz" * 40)}
    engine = prophetic_engine(model, tokenizer, said_on)
    answered, cancelled = engine.submit(request), engine.submit(request)
    for _ in range(6):
        engine.step()
    engine.answer_now(answered)
    engine.cancel(cancelled)
    outputs, _ = drain(engine)
    check_drafts_were_tried(engine)
    assert outputs[answered, 0].text == "XYZ"
    assert outputs[cancelled, 0].finish_reason == "cancelled"
    thought = outputs[cancelled, 0].thinking
    assert ("abcdefghijklmnopqrstuvwxyz" * 40).startswith(thought)
    assert len(thought) >= 5


def test_forks_and_preemption_with_drafts_change_no_answer(llama, tokenizer):
    params = SamplingParams(max_tokens=40, seed=3, temperature=0.5, n=3, ignore_eos=True)
    requests = [Request(random_ids(20 + i, i) * 2, params) for i in range(3)]
    plain = make_engine(llama, tokenizer, speculation="off")
    tight = eager_engine(llama, tokenizer, cache_tokens=192)
    for engine in (plain, tight):
        for request in requests:
            engine.submit(request)
    expected, found = drain(plain)[0], drain(tight)[0]
    assert tight.counters.preemptions > 0
    check_drafts_were_tried(tight)
    for key, output in expected.items():
        assert found[key].token_ids == output.token_ids


def test_only_accepted_tokens_are_found_in_the_cache_later(llama, tokenizer):
    (request,) = requests_of("plain", count=1, max_tokens=60)
    _, answers = known_answers(make_engine(llama, tokenizer, speculation="off"), [request])
    engine = prophetic_engine(llama, tokenizer, answers, block_size=4)
    (output,) = generate(engine, [request])
    check_drafts_were_tried(engine)
    whole = [*request.prompt_ids, *output.token_ids]
    computed = (len(whole) - 1) // 4
    assert len(engine.blocks.block_of) == computed
    next_turn = replace(request, prompt_ids=[*whole, 1, 2], speculate=False)
    (second,) = generate(engine, [next_turn])
    assert second.usage.cached_tokens == computed * 4
    (fresh,) = generate(make_engine(llama, tokenizer), [next_turn])
    assert second.token_ids == fresh.token_ids


def test_nothing_is_drafted_where_rows_cost_what_they_bring(llama, tokenizer):
    request = Request([7, 8, 9] * 20, SamplingParams(temperature=0, max_tokens=50, ignore_eos=True))
    engine = make_engine(llama, tokenizer)
    engine.speculation.costs = CostlyRows()
    generate(engine, [request, request])
    assert engine.counters.drafted_tokens == 0


def test_who_does_not_want_drafts_gets_none(llama, tokenizer):
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
    request = Request([7, 8, 9] * 20, params, speculate=False)
    engine = eager_engine(llama, tokenizer)
    generate(engine, [request])
    assert engine.counters.drafted_tokens == 0
    with pytest.raises(RequestError, match="speculation is 'yes'"):
        make_engine(llama, tokenizer, speculation="yes")
    with pytest.raises(RequestError, match="speculation is 'yes'"):
        mull.load("no such model", speculation="yes")


def test_guesses_that_fail_are_made_no_more(llama, tokenizer):
    """Free text: pairs of letters recur all the time, what follows them does not."""
    params = SamplingParams(seed=1, temperature=10.0, max_tokens=400, ignore_eos=True, top_k=16)
    engine = make_engine(llama, tokenizer)
    learnt = engine.speculation.costs
    for _ in range(100):
        for rows in range(1, 17):
            learnt.observe(rows, 1.0 + 0.2 * rows)
    learnt.observe = lambda rows, seconds: None
    (output,) = generate(engine, [Request(random_ids(50, 1), params, detect_loops=False)])
    assert len(output.token_ids) == 400
    assert engine.counters.drafted_tokens < 20


@pytest.fixture(scope="module")
def expected(llama: CausalLM, tokenizer: Tokenizer) -> list[tuple[Request, list[int]]]:
    """Ten prompts, some beginning alike, and what each gives without drafts."""
    shared = random_ids(40, 77)
    params = SamplingParams(temperature=0, ignore_eos=True)
    requests = [
        Request(shared[: 8 * i] + random_ids(3 + i, i), replace(params, max_tokens=6 + 5 * (i % 4)))
        for i in range(10)
    ]
    outputs = generate(make_engine(llama, tokenizer, speculation="off"), requests)
    return [(r, o.token_ids) for r, o in zip(requests, outputs, strict=True)]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 9), st.integers(1, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    min_size=5,
    max_size=25,
)


@given(operations=OPERATIONS, blocks=st.integers(12, 30))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_whatever_happens_meanwhile_drafts_leak_no_block_and_change_no_token(
    llama, tokenizer, expected, operations, blocks
):
    answers = {tuple(request.prompt_ids): ids for request, ids in expected}
    sizes = {"cache_tokens": 8 * blocks, "block_size": 8}
    engine = prophetic_engine(
        llama, tokenizer, answers, max_batch_tokens=24, max_running=5, **sizes
    )
    wanted: dict[int, list[int]] = {}
    outputs: dict[tuple[int, int], Output] = {}
    for name, *arguments in operations:
        if name == "submit":
            request, ids = expected[arguments[0]]
            sampling = replace(request.sampling, n=arguments[1])
            wanted[engine.submit(replace(request, sampling=sampling))] = ids
        elif name == "cancel":
            engine.cancel(arguments[0])
        else:
            for _ in range(arguments[0]):
                outputs.update(collect(engine.step()))
                check_ownership(engine.blocks, engine.scheduler.running, block_size=8)
    outputs.update(drain(engine)[0])
    assert engine.counters.used_blocks == 0
    for (request_id, _), output in outputs.items():
        complete = output.finish_reason != "cancelled"
        ids = wanted[request_id]
        assert output.token_ids == (ids if complete else ids[: len(output.token_ids)])
