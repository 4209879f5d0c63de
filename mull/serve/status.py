"""What the server is doing just now, for the page and for whoever watches."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import psutil

import mull
from mull import weights
from mull.serve.answers import RunningAnswers
from mull.serve.metrics import Metrics
from mull.serve.models import Loaded, ModelPool
from mull.serve.settings import Settings

WINDOW_SECONDS = 10

# The moment, and by model the tokens decoded and prefilled by then.
_Look = tuple[float, dict[str, tuple[int, int]]]


class Status:
    """Looks at the engines once a second, so that speeds can be told over the last ten."""

    def __init__(
        self, pool: ModelPool, answers: RunningAnswers, metrics: Metrics, settings: Settings
    ) -> None:
        self._pool, self._answers, self._metrics = pool, answers, metrics
        self._settings = settings
        self._started = time.monotonic()
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only starts its clock
        # (moment, decoded tokens, prefilled tokens) by model, of the last seconds.
        self._seen: deque[tuple[float, dict[str, tuple[int, int]]]] = deque(
            maxlen=WINDOW_SECONDS + 1
        )

    async def watch(self) -> None:
        """For ever."""
        while True:
            self._seen.append((time.monotonic(), self._tokens()))
            await asyncio.sleep(1)

    def now(self) -> dict[str, Any]:
        models = [_model(name, loaded) for name, loaded in self._pool.items()]
        memory = self._process.memory_info()
        settings = self._settings
        return {
            "uptime_s": round(time.monotonic() - self._started, 1),
            "version": mull.__version__,
            "requests": {
                "running": sum(model["running"] for model in models),
                "queued": sum(model["queued"] for model in models),
                "finished": self._metrics.answers["finished"],
                "failed": self._metrics.answers["failed"],
            },
            "tokens_per_s": self._speeds(),
            "memory": {
                "rss_bytes": memory.rss,
                "available_bytes": weights.available_memory(),
                "total_bytes": psutil.virtual_memory().total,
            },
            "cpu_percent": self._process.cpu_percent(),
            "models": models,
            "limits": {
                "max_running": settings.max_running,
                "max_queue": settings.max_queue,
                "max_body_bytes": settings.max_body_bytes,
                "max_upload_bytes": settings.max_upload_bytes,
                "memory_bytes": settings.memory_limit,
                "idle_minutes": settings.idle_minutes,
                "keep_minutes": settings.keep_minutes,
            },
        }

    def _tokens(self) -> dict[str, tuple[int, int]]:
        counters = {name: loaded.llm.runner.counters for name, loaded in self._pool.items()}
        return {name: (c.decode_tokens, c.prefill_tokens) for name, c in counters.items()}

    def _speeds(self) -> dict[str, float]:
        if not self._seen:
            return {"decode": 0.0, "prefill": 0.0}
        began, before = self._seen[0]
        seconds = max(1e-3, time.monotonic() - began)
        decoded = prefilled = 0
        for name, (decode, prefill) in self._tokens().items():
            old_decode, old_prefill = before.get(name, (0, 0))
            # A model that was unloaded and loaded again counts from the start.
            decoded += decode - (old_decode if decode >= old_decode else 0)
            prefilled += prefill - (old_prefill if prefill >= old_prefill else 0)
        return {"decode": round(decoded / seconds, 2), "prefill": round(prefilled / seconds, 2)}


def _model(name: str, loaded: Loaded) -> dict[str, Any]:
    counters, engine = loaded.llm.runner.counters, loaded.llm.engine
    size = engine.blocks.block_size
    return {
        "name": name,
        "precision": loaded.llm.precision,
        "weights_bytes": loaded.weights_bytes,
        "cache": {
            "used_tokens": counters.used_blocks * size,
            "total_tokens": engine.blocks.num_blocks * size,
            "hits": counters.cached_tokens,
        },
        "running": counters.running,
        "queued": counters.waiting,
        "idle_s": round(loaded.idle_seconds, 1),
    }
