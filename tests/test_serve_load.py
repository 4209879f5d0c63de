"""Many clients at once, and clients that leave: nothing is mixed up, nothing is held for nobody."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from wire_server import ENDLESS, Running, endless_model, serving, sse_events

from mull.engine.decode_loop import MOST_STEPS
from mull.serve.answers import RunningAnswer

ASK = {"messages": [{"role": "user", "content": "Go on."}]}
WORDS = re.findall(r"\s*\S+", ENDLESS)
FIRST_WORD = 256  # ids: the bytes, then the words in their order


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("load"), context=65536)


@pytest.fixture
def narrow(model: Path) -> Iterator[Running]:
    """Serves one answer at a time; two more may wait."""
    with serving(model, max_running=1, max_queue=2, keep_alive_seconds=0.2) as running:
        httpx2.post(
            f"{running.url}/v1/completions", json={"prompt": "x", "max_tokens": 1}, timeout=60
        )
        yield running


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def test_an_int8_cache_is_smaller_and_says_the_same(model: Path) -> None:
    bytes_held, said = [], []
    for cache in ("fp32", "int8"):
        with serving(model, cache=cache) as running:
            body = {"prompt": [FIRST_WORD], "max_tokens": 20, "temperature": 0}
            answer = httpx2.post(f"{running.url}/v1/completions", json=body, timeout=60).json()
            said.append(answer["choices"][0]["text"])
            metrics = httpx2.get(f"{running.url}/metrics").text
            bytes_held.append(float(re.findall(r"^mull_model_bytes{.*} (.*)$", metrics, re.M)[0]))
    assert said[0] == said[1] != ""
    assert bytes_held[1] < bytes_held[0]


def test_sixteen_clients_at_once_each_get_their_own_text(model: Path) -> None:
    """The prompt's last token decides where in the recital an answer begins."""

    def read(client: int) -> tuple[str, Any]:
        body = {
            "prompt": [FIRST_WORD + 100 * client],
            "max_tokens": 40 + client,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        said, usage = "", None
        with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            for _, _, data in sse_events(response):
                if data != "[DONE]":
                    said += "".join(choice["text"] for choice in data["choices"])
                    usage = data.get("usage") or usage
        return said, usage

    with serving(model) as running, ThreadPoolExecutor(16) as clients:
        url = running.url
        for client, (said, usage) in enumerate(clients.map(read, range(16))):
            start = 100 * client + 1
            assert said == "".join(WORDS[start : start + 40 + client])
            assert usage["completion_tokens"] == 40 + client


class Stream(threading.Thread):
    """A client that reads until it is told to leave. lines: all it has seen."""

    def __init__(self, url: str, *, streams: bool = True) -> None:
        super().__init__(daemon=True)
        self.body = {**ASK, "max_tokens": 50_000, "stream": streams}
        self.url, self.lines, self.leaves = url, list[str](), threading.Event()
        self.start()

    def run(self) -> None:
        client = httpx2.Client(base_url=self.url, timeout=60 if self.body["stream"] else 3)
        try:
            with client.stream("POST", "/v1/chat/completions", json=self.body) as response:
                for line in response.iter_lines():
                    self.lines.append(line)
                    if self.leaves.is_set():
                        return
        except httpx2.TimeoutException:
            pass  # it asked for a whole answer, and lost patience
        finally:
            client.close()

    @property
    def has_words(self) -> bool:
        return any("step" in line for line in self.lines)


def counters(running: Running) -> Any:
    return running.server.parts.pool.loaded["endless"].llm.runner.counters


def test_beyond_the_queue_is_429_with_a_time_to_come_back(narrow: Running) -> None:
    streams = [Stream(narrow.url)]
    until(lambda: streams[0].has_words)
    for _ in range(2):
        streams.append(Stream(narrow.url))
    until(lambda: all(": keep-alive" in stream.lines for stream in streams[1:]))
    refused = httpx2.post(f"{narrow.url}/v1/chat/completions", json=ASK, timeout=30)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    for stream in streams:
        stream.leaves.set()
    until(lambda: counters(narrow).running == counters(narrow).waiting == 0)
    short = {**ASK, "max_tokens": 2}
    served = httpx2.post(f"{narrow.url}/v1/chat/completions", json=short, timeout=30)
    assert served.status_code == 200


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_frees_its_place_within_one_step(
    narrow: Running, streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = narrow.server.parts.pool.loaded["endless"].llm.engine
    stopped, cancelled = [], []
    stop, cancel = RunningAnswer.stop, engine.cancel

    def watched_stop(answer: RunningAnswer, *by: Any) -> None:
        stop(answer, *by)
        stopped.append(engine.counters.steps)

    def watched_cancel(request_id: int) -> bool:
        done = cancel(request_id)
        cancelled.append((engine.counters.steps, len(engine.scheduler.running)))
        return done

    monkeypatch.setattr(RunningAnswer, "stop", watched_stop)
    monkeypatch.setattr(engine, "cancel", watched_cancel)
    first = Stream(narrow.url, streams=streams)
    until(lambda: counters(narrow).running == 1)
    second = Stream(narrow.url)
    first.leaves.set()
    until(lambda: second.has_words)
    # A call counts its steps at its end, those before it was interrupted too.
    assert cancelled[0][0] - stopped[0] <= MOST_STEPS
    assert cancelled[0][1] == 0
    second.leaves.set()
    until(lambda: counters(narrow).running == 0)


def test_a_client_that_leaves_while_it_waits_is_forgotten(narrow: Running) -> None:
    first, second = Stream(narrow.url), Stream(narrow.url)
    until(lambda: counters(narrow).waiting == 1 and (first.has_words or second.has_words))
    served, waiting = (first, second) if first.has_words else (second, first)
    waiting.leaves.set()
    until(lambda: counters(narrow).waiting == 0)
    assert counters(narrow).running == 1
    served.leaves.set()
    until(lambda: counters(narrow).running == 0)
