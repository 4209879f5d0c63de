"""What Prometheus can ask for: requests, queues, times to the first token, speeds, caches."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from mull.serve.answers import RunningAnswer
    from mull.serve.models import ModelPool

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Engine counters by the names they are told under: (field, is it a count that only grows, help).
_OF_ENGINES = {
    "running": (False, "Answers being generated"),
    "waiting": (False, "Answers that wait for a place"),
    "used_blocks": (False, "Cache blocks in use"),
    "free_blocks": (False, "Cache blocks that are free, or hold what may be used again"),
    "steps": (True, "Steps of the model"),
    "prefill_tokens": (True, "Prompt tokens computed"),
    "decode_tokens": (True, "Answer tokens computed"),
    "cached_tokens": (True, "Prompt tokens found in the cache"),
    "drafted_tokens": (True, "Tokens guessed ahead"),
    "accepted_tokens": (True, "Guesses that were right"),
    "preemptions": (True, "Answers whose cache was taken from them for a while"),
    "evictions": (True, "Cached blocks that gave way to others"),
}


class Metrics:
    """One server's own: nothing global."""

    def __init__(self, pool: ModelPool) -> None:
        self.registry = CollectorRegistry()
        self.answers: Tally[str] = Tally()
        self._requests = Counter(
            "mull_requests", "Requests", ["route", "method", "status"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "mull_request_seconds", "Whole requests", ["route"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._answers = Counter(
            "mull_answers", "Answers by how they ended", ["model", "finish"],
            registry=self.registry,
        )  # fmt: skip
        self._first_token = Histogram(
            "mull_time_to_first_token_seconds", "From submit to the first token", ["model"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._speed = Histogram(
            "mull_answer_tokens_per_second", "Of one answer, after its first token", ["model"],
            buckets=_RATES, registry=self.registry,
        )  # fmt: skip
        self._tokens = Counter(
            "mull_tokens", "Tokens of finished answers", ["model", "kind"], registry=self.registry
        )
        self.registry.register(_Engines(pool))
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        # A method is the client's own word, and must not become a label.
        known = method if method in _METHODS else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_answer(self, answer: RunningAnswer) -> None:
        """One that has ended, however it did."""
        finish = "failed" if answer.error is not None else "stopped"
        output = answer.output
        if answer.error is None and answer.stopped_by is None and output is not None:
            finish = output.finish_reason
        self.answers["failed" if finish == "failed" else "finished"] += 1
        self._answers.labels(answer.model, finish).inc()
        for number, output in answer.outputs.items():
            usage, timing = output.usage, output.timing
            if number == 0:
                self._count("prompt", answer.model, usage.prompt_tokens)
                self._count("cached", answer.model, usage.cached_tokens)
            self._count("completion", answer.model, usage.completion_tokens)
            self._count("reasoning", answer.model, usage.reasoning_tokens)
            if timing.ttft_s is not None:
                self._first_token.labels(answer.model).observe(timing.ttft_s)
            if timing.tokens_per_s is not None:
                self._speed.labels(answer.model).observe(timing.tokens_per_s)

    def _count(self, kind: str, model: str, tokens: int) -> None:
        self._tokens.labels(model, kind).inc(tokens)


class _Engines(Collector):
    """The engines' own counters, read when somebody asks."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        counters = {name: loaded.llm.runner.counters for name, loaded in self._pool.items()}
        for field, (is_count, help) in _OF_ENGINES.items():
            kind = CounterMetricFamily if is_count else GaugeMetricFamily
            family = kind(f"mull_engine_{field}", help, labels=["model"])
            for name, known in counters.items():
                family.add_metric([name], getattr(known, field))
            yield family
        size = GaugeMetricFamily("mull_model_bytes", "Memory of a model", labels=["model"])
        for name, loaded in self._pool.items():
            size.add_metric([name], loaded.bytes)
        yield size
