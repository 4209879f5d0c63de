"""Many callers, one engine thread: streams sync and async, cancelling, failures, shutting down."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_parts import LLAMA, drain, generate, make_engine, tiny_model, tiny_tokenizer

from mull.engine.engine import Engine
from mull.engine.request import Event, Request, SamplingParams
from mull.engine.runner import EngineRunner, RequestStream
from mull.errors import MullError, QueueFullError, RequestError
from mull.model.transformer import CausalLM
from mull.text.template_chatml import ChatMLTemplate
from mull.text.tokenizer import Tokenizer
from mull.weights.loader import one_thread

# Deadlocks should fail a test, not hang the run.
PATIENCE = 60


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


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny_model(LLAMA)


@pytest.fixture
def runner(model: CausalLM, tokenizer: Tokenizer) -> Iterator[EngineRunner]:
    with EngineRunner(make_engine(model, tokenizer)) as running:
        yield running


def seeded(seed: int, max_tokens: int = 20, **params) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, seed=seed, ignore_eos=True, **params)
    return Request([seed + 1, 2, 3], sampling, detect_loops=False)


def endless() -> Request:
    return seeded(0, 2000)


def wait_until_idle(runner: EngineRunner) -> None:
    limit = threading.Event()
    for _ in range(PATIENCE * 100):
        counters = runner.counters
        if counters.running == counters.waiting == counters.used_blocks == 0:
            return
        limit.wait(0.01)
    pytest.fail("the engine still works on something")


def test_a_stream_yields_the_events_of_its_own_request(runner, model, tokenizer):
    first, second = runner.submit(seeded(1)), runner.submit(seeded(2, n=2))
    events = list(second)
    assert {event.request_id for event in events} == {events[0].request_id}
    assert [event.kind for event in events].count("end") == 2
    expected = generate(make_engine(model, tokenizer), [seeded(1)])
    assert first.result()[0].token_ids == expected[0].token_ids


def test_callers_in_many_threads_get_what_they_would_get_alone(runner, model, tokenizer):
    found: dict[int, list[int]] = {}

    def call(seed: int) -> None:
        found[seed] = runner.submit(seeded(seed)).result()[0].token_ids

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    engine = make_engine(model, tokenizer)
    assert found == {s: generate(engine, [seeded(s)])[0].token_ids for s in range(8)}


def test_a_long_answer_does_not_hold_up_the_others_of_a_batch(model, tokenizer):
    engine = make_engine(model, tokenizer, max_running=2, max_queue=1)
    taken: list[int] = []

    def requests() -> Iterator[Request]:
        yield endless()
        for seed in range(1, 8):
            taken.append(engine.counters.steps)
            yield seeded(seed, 2)

    with EngineRunner(engine) as runner:
        made = runner.run(requests())
    lengths = [len(output.token_ids) for (output,) in made]
    assert lengths == [2000, *[2] * 7]
    assert max(taken) < 2000  # all while the long one went on


def test_async_streams_share_the_engine(runner, model, tokenizer):
    async def one(seed: int) -> list[int]:
        stream = runner.submit_async(seeded(seed))
        ids = [token async for event in stream for token in event.token_ids]
        assert stream.outputs[0].token_ids == ids
        return ids

    async def several() -> list[list[int]]:
        return await asyncio.wait_for(asyncio.gather(*map(one, range(6))), PATIENCE)

    engine = make_engine(model, tokenizer)
    assert asyncio.run(several()) == [
        generate(engine, [seeded(seed)])[0].token_ids for seed in range(6)
    ]


def test_who_stops_iterating_cancels(runner):
    for event in runner.submit(endless()):
        assert event.kind == "answer"
        break
    wait_until_idle(runner)


def test_who_stops_iterating_asynchronously_cancels(runner):
    async def glance() -> None:
        async for _ in runner.submit_async(endless()):
            break
        await asyncio.sleep(0)

    asyncio.run(glance())
    wait_until_idle(runner)


def test_cancelling_the_waiting_task_cancels_the_request(runner):
    async def abandon() -> None:
        task = asyncio.create_task(runner.submit_async(endless()).result())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(abandon())
    wait_until_idle(runner)


def test_a_stream_can_be_cancelled_from_outside(runner):
    stream = runner.submit(endless())
    stream.cancel()
    (output,) = stream.result()
    assert output.finish_reason == "cancelled"
    stream.cancel()
    wait_until_idle(runner)


def test_answer_now_reaches_the_engine(runner):
    request = Request(
        [1, 2], SamplingParams(max_tokens=1500, ignore_eos=True, seed=1), starts_in_thinking=True
    )
    stream = runner.submit(request)
    stream.answer_now()
    (output,) = stream.result()
    assert output.finish_details["thinking_closed"]["reason"] == "answer_now"


def test_a_bad_request_is_refused_where_it_is_submitted(runner):
    with pytest.raises(RequestError, match="prompt_ids"):
        runner.submit(Request([10**6]))


def test_the_queue_bound_is_felt_by_the_caller_and_run_works_around_it(model, tokenizer):
    engine = make_engine(model, tokenizer, max_queue=2, max_running=1)
    with EngineRunner(engine) as runner:
        streams: list[RequestStream] = []
        with pytest.raises(QueueFullError):
            streams.extend(runner.submit(endless()) for _ in range(10))
        # One runs at most, so that two wait; those submitted together may all still wait.
        assert 2 <= len(streams) <= 3
        for stream in streams:
            stream.cancel()
        for stream in streams:
            assert stream.result()[0].finish_reason == "cancelled"
        outputs = runner.run([seeded(seed, 5) for seed in range(12)])
        alone = make_engine(model, tokenizer)
        assert [group[0].token_ids for group in outputs] == [
            generate(alone, [seeded(seed, 5)])[0].token_ids for seed in range(12)
        ]


@pytest.mark.parametrize(
    ("samples", "options"),
    [(8, {"max_running": 4}), (1, {"cache_tokens": 64, "block_size": 4})],
    ids=["siblings", "preempted"],
)
def test_many_requests_pass_through_a_small_queue(model, tokenizer, samples, options):
    requests = [seeded(seed, 8 if samples > 1 else 40, n=samples) for seed in range(24)]
    with EngineRunner(make_engine(model, tokenizer, max_queue=4, **options)) as runner:
        groups = runner.run(requests)
        assert samples > 1 or runner.counters.preemptions
    alone = make_engine(model, tokenizer, max_queue=24 * samples)
    ids = [alone.submit(request) for request in requests]
    outputs, _ = drain(alone)
    assert [[output.token_ids for output in group] for group in groups] == [
        [outputs[i, sample].token_ids for sample in range(samples)] for i in ids
    ]


class Failing(torch.nn.Module):
    """A norm that raises while it is told to: stands for any fault inside a step."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("out of memory, say")
        return self.norm(x)


def test_a_failing_step_reaches_every_caller_and_the_next_request_is_served(tokenizer):
    model = tiny_model(LLAMA)
    norm = Failing(model.model.norm)
    model.model.norm = norm
    with EngineRunner(make_engine(model, tokenizer)) as runner:
        streams = [runner.submit(endless()) for _ in range(3)]
        iterators = [iter(stream) for stream in streams]
        for iterator in iterators:
            next(iterator)
        norm.fails = True
        for iterator in iterators:
            with pytest.raises(MullError, match="out of memory, say") as caught:
                list(iterator)
            assert isinstance(caught.value.__cause__, RuntimeError)
        norm.fails = False
        wait_until_idle(runner)
        assert runner.submit(seeded(1)).result()[0].finish_reason == "length"


class ClosesNoThinking(ChatMLTemplate):
    def thinking_close_ids(self, *, is_mid_line: bool = True) -> list[int]:
        raise RuntimeError("no ids")


def test_a_failing_submission_reaches_its_caller_and_the_next_request_is_served(model, tokenizer):
    engine = Engine(model, tokenizer, ClosesNoThinking(tokenizer), cache_tokens=8192)
    with EngineRunner(engine) as runner:
        stream = runner.submit(Request([1, 2], starts_in_thinking=True, think_budget=0))
        failed: list[str] = []

        def wait() -> None:
            with pytest.raises(MullError, match="no ids") as caught:
                stream.result()
            failed.append(str(caught.value))

        caller = threading.Thread(target=wait, daemon=True)
        caller.start()
        caller.join(PATIENCE)
        assert failed
        assert runner.submit(seeded(1)).result()[0].finish_reason == "length"


class Held(torch.nn.Module):
    """A norm that keeps a step from ending until it is let go."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.began, self.may_end = threading.Event(), threading.Event()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.began.set()
        assert self.may_end.wait(PATIENCE)
        return self.norm(x)


def test_a_submission_that_fails_while_closing_strands_no_other_caller(tokenizer):
    model = tiny_model(LLAMA)
    held = model.model.norm = Held(model.model.norm)
    engine = Engine(model, tokenizer, ClosesNoThinking(tokenizer), cache_tokens=8192)
    runner = EngineRunner(engine)
    failing = Request([1, 2], starts_in_thinking=True, think_budget=0)
    streams = [runner.submit(endless())]
    assert held.began.wait(PATIENCE)
    streams += [runner.submit(request) for request in (failing, endless())]
    closing = threading.Thread(target=runner.close)
    closing.start()
    while not runner._loop.is_closing:
        time.sleep(0.001)
    held.may_end.set()
    closing.join(PATIENCE)
    ended: list[str] = []

    def wait() -> None:
        for stream in streams:
            try:
                ended.append(stream.result()[0].finish_reason)
            except MullError as error:
                ended.append(str(error))

    caller = threading.Thread(target=wait, daemon=True)
    caller.start()
    caller.join(PATIENCE)
    assert len(ended) == 3
    assert "no ids" in ended[1]
    assert ended[2] == "cancelled"


def test_closing_ends_the_thread_and_cancels_what_runs(model, tokenizer):
    runner = EngineRunner(make_engine(model, tokenizer))
    stream = runner.submit(endless())
    next(iter(stream))
    late = runner.submit(endless())
    runner.close()
    assert late.result()[0].finish_reason == "cancelled"
    assert not any(thread.name == "mull-engine" for thread in threading.enumerate())
    with pytest.raises(RequestError, match="closed"):
        runner.submit(endless())
    runner.close()


def test_a_forgotten_runner_ends_its_thread_and_frees_its_engine(model, tokenizer):
    engine = make_engine(model, tokenizer)
    held = weakref.ref(engine)
    EngineRunner(engine).run([seeded(1)])
    del engine
    gc.collect()
    assert held() is None
    assert not any(thread.name == "mull-engine" for thread in threading.enumerate())


def test_a_model_being_loaded_takes_no_threads_from_another_ones_engine(
    model: CausalLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    step = Engine.step
    is_loading, has_answered = threading.Event(), threading.Event()

    def noting(engine: Engine) -> list[Event]:
        seen.add(torch.get_num_threads())
        return step(engine)

    def load() -> None:
        torch.get_num_threads()
        with one_thread():
            is_loading.set()
            has_answered.wait(PATIENCE)

    monkeypatch.setattr(Engine, "step", noting)
    torch.set_num_threads(2)
    loading = threading.Thread(target=load)
    loading.start()
    try:
        assert is_loading.wait(PATIENCE)
        with EngineRunner(make_engine(model, tokenizer)) as runner:
            runner.run([seeded(1, 3)])
    finally:
        has_answered.set()
        loading.join()
        torch.set_num_threads(1)
    assert seen == {2}
