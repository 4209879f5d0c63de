"""Batched, chunked, cached, preempted and forked generation gives what one at a time gives."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_parts import (
    DEEPSEEK,
    EOS,
    LLAMA,
    VOCABULARY,
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

from mull.engine.engine import Engine
from mull.engine.paged import PagedSequences
from mull.engine.request import Output, Request, SamplingParams
from mull.engine.scheduler import Chunk
from mull.engine.sequence import Sequence
from mull.errors import QueueFullError, RequestError
from mull.model.transformer import CausalLM
from mull.text.tokenizer import Tokenizer

SHAPES = {"llama": LLAMA, "deepseek": DEEPSEEK}
CLOSE = 1e-4


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


@pytest.fixture(scope="module", params=list(SHAPES))
def model(request: pytest.FixtureRequest) -> CausalLM:
    return tiny_model(SHAPES[request.param])


@pytest.fixture(scope="module")
def llama() -> CausalLM:
    return tiny_model(LLAMA)


def random_ids(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length,), generator=generator).tolist()


def greedy(ids: list[int], max_tokens: int = 24, **fields) -> Request:
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return Request(ids, params, detect_loops=False, **fields)


def one_at_a_time(model: CausalLM, tokenizer: Tokenizer, requests: list[Request]) -> list[Output]:
    engine = make_engine(model, tokenizer)
    return [generate(engine, [request])[0] for request in requests]


def near_ties(model: CausalLM, request: Request, ours: Output, other: Output) -> int:
    """0 for equal tokens, 1 for a parting where the two best logits are within 1e-4; else fails."""
    if ours.token_ids == other.token_ids:
        return 0
    pairs = zip(ours.token_ids, other.token_ids, strict=True)
    parted = next(i for i, (a, b) in enumerate(pairs) if a != b)
    logits = packed_logits(model, [*request.prompt_ids, *ours.token_ids[:parted]])[-1]
    best, second = logits.topk(2).values.tolist()
    assert best - second < CLOSE
    return 1


def used_blocks(engine: Engine) -> int:
    return engine.counters.used_blocks


def test_greedy_tokens_are_those_of_plain_forward_passes(model, tokenizer):
    prompt = random_ids(30, 1)
    (output,) = generate(make_engine(model, tokenizer), [greedy(prompt)])
    logits = packed_logits(model, [*prompt, *output.token_ids])
    for token, row in zip(output.token_ids, logits[len(prompt) - 1 :], strict=False):
        assert row[token] > row.max() - CLOSE
    assert len(output.token_ids) == 24
    assert len(set(output.token_ids)) > 4, "a model that says one thing would prove nothing"


def test_32_requests_at_once_give_the_tokens_of_one_at_a_time(model, tokenizer):
    requests = [greedy(random_ids(3 + 7 * i % 150, i), 5 + i % 20) for i in range(32)]
    together = make_engine(model, tokenizer, max_batch_tokens=128)
    batched = generate(together, requests)
    alone = one_at_a_time(model, tokenizer, requests)
    differing = sum(
        near_ties(model, *three) for three in zip(requests, alone, batched, strict=True)
    )
    assert differing <= 1
    assert together.counters.steps < sum(output.usage.completion_tokens for output in batched) / 4
    assert used_blocks(together) == 0


@pytest.mark.parametrize("block_size", [16, 5])
def test_chunked_cached_and_batched_logits_equal_those_without_a_cache(
    model, tokenizer, block_size
):
    engine = make_engine(model, tokenizer, block_size=block_size)
    ids = [random_ids(length, length) for length in (37, 64, 1)]
    seqs = [Sequence(i, 0, i, Request(prompt), 0) for i, prompt in enumerate(ids)]
    for seq in seqs:
        engine.blocks.allocate(seq)
    steps = [[(0, 20), (1, 1)], [(1, 30)], [(0, 1), (1, 33), (2, 1)], [(0, 16)]]
    found: list[list[torch.Tensor]] = [[], [], []]
    with torch.inference_mode():
        for step in steps:
            chunks = [Chunk(seqs[i], seqs[i].computed, count) for i, count in step]
            paged = PagedSequences(chunks, engine.cache)
            logits = model.logits(model(paged.ids_T, paged))
            for (i, count), rows in zip(step, logits.split([c for _, c in step]), strict=True):
                found[i].append(rows)
                seqs[i].computed += count
    for prompt, rows in zip(ids, found, strict=True):
        difference = (torch.cat(rows) - packed_logits(model, prompt)).abs().max()
        assert difference < CLOSE


def test_a_seeded_request_gives_the_same_tokens_whatever_its_neighbours(model, tokenizer):
    params = SamplingParams(max_tokens=30, temperature=0.9, top_p=0.9, seed=7, ignore_eos=True)
    request = Request(random_ids(20, 3), params)
    (alone,) = generate(make_engine(model, tokenizer), [request])
    kinds = [
        SamplingParams(max_tokens=40, temperature=0),
        SamplingParams(max_tokens=40, top_k=5, presence_penalty=1.0),
        SamplingParams(max_tokens=40, seed=7, logprobs=3),
        SamplingParams(max_tokens=40, min_p=0.1, logit_bias={5: 3.0}),
    ]
    neighbours = [Request(random_ids(10 + i, 100 + i), kinds[i % 4]) for i in range(12)]
    crowded = make_engine(model, tokenizer, max_batch_tokens=64, max_running=16)
    outputs = generate(crowded, [*neighbours[:6], request, *neighbours[6:]])
    assert outputs[6].token_ids == alone.token_ids


def test_requests_without_a_seed_differ(llama, tokenizer):
    request = Request(random_ids(9, 1), SamplingParams(max_tokens=20, ignore_eos=True))
    first, second = generate(make_engine(llama, tokenizer), [request, request])
    assert first.token_ids != second.token_ids


def test_preempted_requests_finish_unchanged(model, tokenizer):
    requests = [greedy(random_ids(20 + i, i), 40) for i in range(6)]
    tight = make_engine(model, tokenizer, cache_tokens=160)
    squeezed = generate(tight, requests)
    assert tight.counters.preemptions > 0
    preempted = sum(output.finish_details.get("preemptions", 0) for output in squeezed)
    assert preempted == tight.counters.preemptions
    alone = one_at_a_time(model, tokenizer, requests)
    assert sum(near_ties(model, *t) for t in zip(requests, alone, squeezed, strict=True)) <= 1
    assert used_blocks(tight) == 0


def test_a_preempted_seeded_request_samples_the_same_tokens(llama, tokenizer):
    params = SamplingParams(max_tokens=40, seed=3, temperature=0.8, ignore_eos=True)
    requests = [Request(random_ids(20 + i, i), params) for i in range(6)]
    tight = make_engine(llama, tokenizer, cache_tokens=160)
    squeezed = generate(tight, requests)
    assert tight.counters.preemptions > 0
    alone = one_at_a_time(llama, tokenizer, requests)
    assert [o.token_ids for o in squeezed] == [o.token_ids for o in alone]


def test_cancelling_frees_its_blocks_at_once(llama, tokenizer):
    engine = make_engine(llama, tokenizer)
    kept = engine.submit(greedy(random_ids(100, 1), 50))
    dropped = engine.submit(greedy(random_ids(200, 2), 50))
    for _ in range(5):
        engine.step()
    # 100 + 4 tokens are 7 blocks of 16, 200 + 4 are 13.
    assert used_blocks(engine) == 7 + 13
    assert engine.cancel(dropped)
    assert used_blocks(engine) == 7
    outputs, _ = drain(engine)
    assert outputs[dropped, 0].finish_reason == "cancelled"
    assert outputs[dropped, 0].usage.completion_tokens == 5
    assert outputs[kept, 0].usage.completion_tokens == 50
    assert used_blocks(engine) == 0
    assert not engine.cancel(dropped)


def test_a_waiting_request_and_all_its_samples_can_be_cancelled(llama, tokenizer):
    engine = make_engine(llama, tokenizer, max_running=1)
    engine.submit(greedy([1, 2, 3], 5))
    engine.step()
    waiting = engine.submit(Request([4], SamplingParams(n=3)))
    engine.cancel(waiting)
    outputs, _ = drain(engine)
    reasons = [outputs[waiting, index].finish_reason for index in range(3)]
    assert reasons == ["cancelled"] * 3
    assert len(outputs) == 4


def test_a_shared_prefix_of_1000_tokens_is_computed_once(model, tokenizer):
    shared = random_ids(1000, 5)
    requests = [greedy([*shared, *random_ids(5, i)], 4, namespace="owner") for i in range(4)]
    engine = make_engine(model, tokenizer)
    outputs = generate(engine, requests)
    # 62 whole blocks of 16, 992 tokens, are shared; the rest of each request is its own.
    assert engine.counters.prefill_tokens == 1005 + 3 * 13
    assert [output.usage.cached_tokens for output in outputs] == [0, 992, 992, 992]
    fresh = one_at_a_time(model, tokenizer, [requests[3]])
    assert near_ties(model, requests[3], fresh[0], outputs[3]) == 0


def test_a_prefix_is_never_shared_across_namespaces(llama, tokenizer):
    shared = random_ids(300, 5)
    engine = make_engine(llama, tokenizer)
    for owner in ("a", "b", ""):
        (output,) = generate(engine, [greedy(shared, 2, namespace=owner)])
        assert output.usage.cached_tokens == 0
    assert engine.counters.prefill_tokens == 900
    (again,) = generate(engine, [greedy(shared, 2, namespace="b")])
    assert again.usage.cached_tokens == 288


def test_the_next_turn_of_a_conversation_finds_prompt_and_answer_in_the_cache(llama, tokenizer):
    engine = make_engine(llama, tokenizer)
    prompt = random_ids(40, 8)
    (first,) = generate(engine, [greedy(prompt, 30)])
    (second,) = generate(engine, [greedy([*prompt, *first.token_ids, 1, 2, 3], 5)])
    # 69 tokens were computed (the last one never was): 4 whole blocks.
    assert second.usage.cached_tokens == 64


@pytest.mark.parametrize("length", [37, 48])
def test_samples_share_one_prefill(model, tokenizer, length):
    prompt = random_ids(length, 4)
    params = SamplingParams(max_tokens=12, seed=5, n=6, ignore_eos=True)
    engine = make_engine(model, tokenizer)
    engine.submit(Request(prompt, params))
    outputs, _ = drain(engine)
    assert engine.counters.prefill_tokens == length
    assert used_blocks(engine) == 0
    answers = [tuple(outputs[0, index].token_ids) for index in range(6)]
    assert len(set(answers)) == 6
    # Each sample is what it would have been in an engine that has no room to share in.
    cramped = make_engine(model, tokenizer, max_running=1)
    cramped.submit(Request(prompt, params))
    outputs, _ = drain(cramped)
    assert [tuple(outputs[0, index].token_ids) for index in range(6)] == answers


def test_greedy_and_seeded_samples_survive_a_cache_too_small_for_all(llama, tokenizer):
    params = SamplingParams(max_tokens=30, seed=5, n=5, ignore_eos=True)
    request = Request(random_ids(20, 4), params)
    roomy, tight = make_engine(llama, tokenizer), make_engine(llama, tokenizer, cache_tokens=96)
    roomy.submit(request)
    tight.submit(request)
    expected, _ = drain(roomy)
    found, _ = drain(tight)
    assert tight.counters.preemptions > 0
    assert {k: o.token_ids for k, o in found.items()} == {
        k: o.token_ids for k, o in expected.items()
    }


def test_log_probabilities_are_the_models_own_or_at_the_temperature(model, tokenizer):
    own = SamplingParams(max_tokens=8, temperature=0.5, top_k=3, logprobs=2, seed=1)
    prompt = random_ids(11, 2)
    requests = [Request(prompt, own), Request(prompt, replace(own, tempered_logprobs=True))]
    outputs = generate(make_engine(model, tokenizer), requests)
    assert outputs[0].token_ids == outputs[1].token_ids
    rows = packed_logits(model, [*prompt, *outputs[0].token_ids])[len(prompt) - 1 :]
    for output, temperature in zip(outputs, (1.0, 0.5), strict=True):
        assert len(output.logprobs) == len(output.token_ids)
        logprobs = (rows / temperature).log_softmax(-1)
        for entry, token, row in zip(output.logprobs, output.token_ids, logprobs, strict=False):
            assert entry.token_id == token
            assert entry.logprob == pytest.approx(row[token].item(), abs=CLOSE)
            best = row.topk(2)
            assert [t for t, _ in entry.top] == best.indices.tolist()
            assert [p for _, p in entry.top] == pytest.approx(best.values.tolist(), abs=CLOSE)


def test_events_carry_every_token_once_and_in_order(llama, tokenizer):
    engine = make_engine(llama, tokenizer)
    params = SamplingParams(max_tokens=60, seed=2, logprobs=0, n=3)
    for start in range(4):
        engine.submit(Request([start + 1, 2, 3], params))
    outputs, events = drain(engine)
    for key, output in outputs.items():
        own = [event for event in events if (event.request_id, event.index) == key]
        assert [t for event in own for t in event.token_ids] == output.token_ids
        assert [p for event in own for p in event.logprobs] == output.logprobs
        assert "".join(e.text for e in own if e.kind == "answer") == output.text
        assert [event.kind for event in own].count("end") == 1
        assert own[-1].output is output


def test_the_end_token_ends_an_answer_unless_told_otherwise(llama, tokenizer):
    ends = SamplingParams(max_tokens=5, logit_bias={EOS: 100.0}, temperature=0)
    goes_on = SamplingParams(max_tokens=5, logit_bias={EOS: 100.0}, temperature=0, ignore_eos=True)
    engine = make_engine(llama, tokenizer)
    ended, went_on = generate(engine, [Request([1, 2], ends), Request([1, 2], goes_on)])
    assert (ended.token_ids, ended.finish_reason, ended.text) == ([EOS], "stop", "")
    assert (went_on.token_ids, went_on.finish_reason) == ([EOS] * 5, "length")


def test_an_answer_ends_when_the_context_is_full_and_says_so(llama, tokenizer):
    engine = make_engine(llama, tokenizer, context=40)
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    (output,) = generate(engine, [Request(random_ids(30, 1), params)])
    assert output.usage.completion_tokens == 10
    assert output.finish_reason == "length"
    assert output.finish_details == {"context_full": True}


def test_a_prompt_longer_than_the_context_is_refused_and_told_what_fits(llama, tokenizer):
    engine = make_engine(llama, tokenizer, context=64)
    with pytest.raises(RequestError, match=r"has 70 tokens, but at most 63 fit.*by 7 tokens"):
        engine.submit(Request(random_ids(70, 1)))
    small = make_engine(llama, tokenizer, cache_tokens=32)
    with pytest.raises(RequestError, match="at most 31 fit"):
        small.submit(Request(random_ids(70, 1)))
    assert not engine.has_work


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (Request([1, VOCABULARY]), "prompt_ids"),
        (Request([-1]), "prompt_ids"),
        (Request([1.5]), "prompt_ids"),
        (Request([1], SamplingParams(logit_bias={VOCABULARY: 1.0})), "logit_bias"),
        (Request([1], SamplingParams(stop_token_ids=[VOCABULARY])), "stop_token_ids"),
    ],
)
def test_ids_beyond_the_vocabulary_are_refused_at_submit(llama, tokenizer, request_, named):
    engine = make_engine(llama, tokenizer)
    with pytest.raises(RequestError, match=named) as caught:
        engine.submit(request_)
    assert "\n" not in str(caught.value)
    assert not engine.has_work


def test_samples_that_end_before_the_first_step_all_end(llama, tokenizer):
    engine = make_engine(llama, tokenizer)
    params = SamplingParams(n=3, max_tokens=1)
    engine.submit(Request([1, 2, 3], params, starts_in_thinking=True, think_budget=0))
    outputs, _ = drain(engine)
    assert [outputs[0, index].finish_reason for index in range(3)] == ["length"] * 3


def test_penalties_pass_over_prompt_ids_of_the_padded_head(tokenizer):
    padded = tiny_model({**LLAMA, "vocab_size": VOCABULARY + 40})
    params = SamplingParams(max_tokens=5, repetition_penalty=1.3, presence_penalty=0.5, seed=1)
    (output,) = generate(make_engine(padded, tokenizer), [Request([1, VOCABULARY + 39, 2], params)])
    assert 1 <= len(output.token_ids) <= 5


def test_any_text_may_name_a_namespace(llama, tokenizer):
    request = Request(random_ids(40, 1), SamplingParams(max_tokens=2), namespace="half \ud800")
    (output,) = generate(make_engine(llama, tokenizer), [request])
    assert output.usage.cached_tokens == 0


def test_the_queue_is_bounded_and_recovers(llama, tokenizer):
    engine = make_engine(llama, tokenizer, max_queue=3, max_running=2)
    for _ in range(3):
        engine.submit(greedy([1, 2], 2))
    with pytest.raises(QueueFullError):
        engine.submit(greedy([1, 2], 2))
    engine.step()
    engine.submit(greedy([1, 2], 2))
    outputs, _ = drain(engine)
    assert len(outputs) == 4


def test_every_sample_of_a_request_counts_in_the_queue(llama, tokenizer):
    engine = make_engine(llama, tokenizer, max_queue=4)
    engine.submit(Request([1, 2], SamplingParams(max_tokens=2, temperature=0, n=4)))
    with pytest.raises(QueueFullError):
        engine.submit(greedy([1, 2], 2))
    outputs, _ = drain(engine)
    assert len(outputs) == 4


def test_a_cache_too_small_to_use_is_refused(llama, tokenizer):
    with pytest.raises(RequestError, match="cache_tokens is 8"):
        make_engine(llama, tokenizer, cache_tokens=8)
    with pytest.raises(RequestError, match="available memory is 1000 bytes"):
        make_engine(llama, tokenizer, cache_tokens=None, available_bytes=1000)


def test_the_cache_takes_what_the_config_says(model, tokenizer):
    for dtype in (torch.float32, torch.bfloat16):
        engine = make_engine(model, tokenizer, cache_tokens=512, cache_dtype=dtype)
        assert engine.cache.bytes == 512 * model.config.cache_bytes_per_token(dtype)
    by_bytes = make_engine(model, tokenizer, cache_tokens=None, cache_bytes=300_000)
    assert 280_000 < by_bytes.cache.bytes <= 300_000


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 9), st.integers(1, 3), st.sampled_from("ab")),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("step"), st.integers(1, 8)),
    ),
    min_size=5,
    max_size=25,
)


@pytest.fixture(scope="module")
def expected(llama: CausalLM, tokenizer: Tokenizer) -> list[tuple[Request, list[int]]]:
    """Ten prompts, some beginning alike, and what each gives alone."""
    shared = random_ids(40, 77)
    prompts = [shared[: 8 * i] + random_ids(3 + i, i) for i in range(10)]
    requests = [greedy(prompt, 6 + 5 * (i % 4)) for i, prompt in enumerate(prompts)]
    alone = one_at_a_time(llama, tokenizer, requests)
    return [(r, o.token_ids) for r, o in zip(requests, alone, strict=True)]


@given(operations=OPERATIONS, blocks=st.integers(12, 30))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_whatever_is_submitted_and_cancelled_every_answer_is_what_it_is_alone(
    llama, tokenizer, expected, operations, blocks
):
    engine = make_engine(
        llama,
        tokenizer,
        cache_tokens=8 * blocks,
        block_size=8,
        max_batch_tokens=24,
        max_running=5,
    )
    wanted: dict[int, list[int]] = {}
    outputs: dict[tuple[int, int], Output] = {}
    for name, *arguments in operations:
        if name == "submit":
            which, samples, namespace = arguments
            request, ids = expected[which]
            sampling = replace(request.sampling, n=samples)
            sent = replace(request, sampling=sampling, namespace=namespace)
            wanted[engine.submit(sent)] = ids
        elif name == "cancel":
            engine.cancel(arguments[0])
        else:
            for _ in range(arguments[0]):
                outputs.update(collect(engine.step()))
    outputs.update(drain(engine)[0])
    assert used_blocks(engine) == 0
    assert {request_id for request_id, _ in outputs} == set(wanted)
    for (request_id, _), output in outputs.items():
        ids = wanted[request_id]
        complete = output.finish_reason != "cancelled"
        assert output.token_ids == (ids if complete else ids[: len(output.token_ids)])


@pytest.mark.parametrize("shape", [LLAMA, DEEPSEEK])
def test_a_prompts_own_likelihood_is_that_of_one_forward_pass(tokenizer, shape):
    model = tiny_model(shape)
    ids = [(37 * i * i + i) % 256 for i in range(150)]
    request = Request(ids, SamplingParams(max_tokens=1), prompt_logprobs=2)
    engine = make_engine(model, tokenizer, max_batch_tokens=32, max_running=4)
    generate(engine, [Request(ids, SamplingParams(max_tokens=1))])  # fills the cache
    told = generate(engine, [request])[0].prompt_logprobs
    assert told is not None
    expected = packed_logits(model, ids).log_softmax(-1)
    assert [known.token_id for known in told] == ids
    assert told[0].logprob is None
    for i, known in enumerate(told[1:]):
        assert known.logprob == pytest.approx(expected[i, ids[i + 1]].item(), abs=1e-4)
        assert known.top[0][1] == pytest.approx(expected[i].max().item(), abs=1e-4)
