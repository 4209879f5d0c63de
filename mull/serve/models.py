"""The models a server holds: loaded when somebody asks, unloaded when nobody does, within memory.

Only names of the store and the model the server was started with can be asked for: a path in a
request is never looked at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from mull import loading, weights
from mull.errors import ModelError, MullError, TextError, WeightsError
from mull.llm import LLM, load
from mull.serve.errors import ApiError
from mull.serve.settings import Settings
from mull.weights.catalog import near_matches
from mull.weights.memory import OVERHEAD_BYTES, needed_bytes
from mull.weights.order import in_gb

SWEEP_SECONDS = 5.0
# Names that clients of DeepSeek's own API send; here they mean the default model.
HOUSE_NAMES = ("deepseek-chat", "deepseek-reasoner")


@dataclass
class Loaded:
    """A model in memory. leases: how many requests hold it just now."""

    llm: LLM
    weights_bytes: int
    leases: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @property
    def bytes(self) -> int:
        return self.weights_bytes + self.llm.engine.cache.bytes + OVERHEAD_BYTES

    @property
    def idle_seconds(self) -> float:
        return 0.0 if self.leases else time.monotonic() - self.last_used


class ModelPool:
    """Lives in one asyncio loop; loading and unloading happen in threads beside it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loaded: dict[str, Loaded] = {}
        files = weights.resolve(settings.model)
        self.default = files.name
        # What the server was started with may lie outside the store.
        self._given = {files.name: settings.model}
        self._loads: dict[str, asyncio.Task[Loaded]] = {}
        self._one_at_a_time = asyncio.Lock()

    def items(self) -> list[tuple[str, Loaded]]:
        """What is in memory just now."""
        return list(self.loaded.items())

    def names(self) -> list[str]:
        """Every model that can be asked for, the default one first."""
        stored = [files.name for files in weights.list_models()]
        return list(dict.fromkeys([self.default, *stored]))

    def source_of(self, name: str) -> str:
        """What to load for a name that `find` gave: itself, or the path the server was given."""
        return self._given.get(name, name)

    def find(self, name: str | None) -> str:
        """The model a request's name means; raises ApiError 404 where there is none."""
        if not name or name in (self.default, *HOUSE_NAMES):
            return self.default
        names = self.names()
        if name in names:
            return name
        near = near_matches(name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else "GET /v1/models lists them"
        raise ApiError(
            404, f"no model {name[:80]!r} here: {hint}", param="model", code="model_not_found"
        )

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[LLM]:
        """The model, loaded first if need be; it stays at least as long as it is held."""
        loaded = await self._take(self.find(name))
        try:
            yield loaded.llm
        finally:
            loaded.leases -= 1
            loaded.last_used = time.monotonic()

    def check_default(self) -> None:
        """Whether the model the server starts with can be loaded at all, as far as its headers
        tell; raises MullError."""
        _plan(self._given[self.default], self.settings)

    async def load(self, name: str) -> None:
        """Have it in memory, for whoever asks next."""
        async with self.lease(name):
            pass

    async def unload(self, name: str) -> bool:
        """Free its memory; False when it is not loaded. ApiError 409 while it is in use."""
        loaded = self.loaded.get(name)
        if loaded is None:
            return False
        if loaded.leases:
            raise ApiError(409, f"{name} is answering just now: wait for it, or stop its answers")
        await self._unload(name)
        return True

    async def sweep(self) -> None:
        """Unload what nobody has used for `idle_minutes`, for ever."""
        minutes = self.settings.idle_minutes
        while minutes is not None:
            await asyncio.sleep(min(SWEEP_SECONDS, minutes * 60))
            for name, loaded in list(self.loaded.items()):
                if not loaded.leases and loaded.idle_seconds >= minutes * 60:
                    await self._unload(name)

    async def close(self) -> None:
        """Let every model go; requests that still run are cancelled."""
        for task in list(self._loads.values()):
            with suppress(MullError, ApiError):
                await task
        for name in list(self.loaded):
            await self._unload(name)

    async def _take(self, name: str) -> Loaded:
        while True:
            loaded = self.loaded.get(name)
            if loaded is not None:
                loaded.leases += 1
                return loaded
            task = self._loads.get(name)
            if task is None:
                task = asyncio.create_task(self._load(name))
                self._loads[name] = task
                task.add_done_callback(lambda _: self._loads.pop(name, None))
            # Whoever leaves does not take the loading away from those who wait as well.
            await asyncio.shield(task)

    async def _load(self, name: str) -> Loaded:
        async with self._one_at_a_time:
            source = self.source_of(name)
            try:
                plan = await asyncio.to_thread(_plan, source, self.settings)
                await self._make_room(name, plan)
                llm = await asyncio.to_thread(self._load_now, source, plan)
            except (TextError, ModelError) as error:
                # While it is loaded that is the model's fault, not the request's.
                raise WeightsError(f"{name} cannot be loaded: {error}") from error
            loaded = Loaded(llm, plan.weights)
            self.loaded[name] = loaded
            return loaded

    def _load_now(self, source: str, plan: Plan) -> LLM:
        settings = self.settings
        return load(
            source,
            precision=settings.precision,
            device=settings.device,
            threads=settings.threads,
            context=plan.context,
            cache=settings.cache,
            cache_tokens=settings.cache_tokens or self._cache_within(plan),
            speculation=settings.speculation,
            max_running=settings.max_running,
            max_queue=settings.max_queue,
        )

    async def _make_room(self, name: str, plan: Plan) -> None:
        """Unload idle models, the longest unused first, until this one fits; ApiError 503 when it
        does not fit even so."""
        while plan.needed > self._free():
            idle = [each for each in self.loaded if not self.loaded[each].leases]
            if not idle:
                raise self._does_not_fit(name, plan)
            await self._unload(min(idle, key=lambda each: self.loaded[each].last_used))

    def _free(self) -> int:
        available = weights.available_memory()
        limit = self.settings.memory_limit
        if limit is None:
            return available
        return min(available, limit - sum(loaded.bytes for loaded in self.loaded.values()))

    def _cache_within(self, plan: Plan) -> int | None:
        """How many tokens of cache the memory limit leaves; None where there is no limit."""
        if self.settings.memory_limit is None:
            return None
        room = self._free() - plan.weights - OVERHEAD_BYTES
        return max(16, min(plan.cache_tokens, room // plan.cache_bytes_per_token))

    def _does_not_fit(self, name: str, plan: Plan) -> ApiError:
        busy = ", ".join(self.loaded)
        message = (
            f"{name} needs {in_gb(plan.needed)} of memory in {plan.precision}, "
            f"{in_gb(max(0, self._free()))} are free"
        )
        if busy:
            message += f" while {busy} is in use: try again when it is not"
        return ApiError(503, message, code="model_does_not_fit", retry_after=30 if busy else None)

    async def _unload(self, name: str) -> None:
        loaded = self.loaded.pop(name)
        llm = loaded.llm
        del loaded
        await asyncio.to_thread(llm.close)
        del llm
        await asyncio.to_thread(_collect)


@dataclass(frozen=True)
class Plan:
    """What loading a model takes, in bytes; needed: with the cache of one conversation.

    context: tokens of a conversation as the settings want it, None for the model's own.
    cache_tokens: what all conversations together may take where there is a limit of memory.
    """

    precision: str
    weights: int
    needed: int
    cache_bytes_per_token: int
    cache_tokens: int
    context: int | None


def _plan(source: str, settings: Settings) -> Plan:
    device = loading.check_options(
        precision=settings.precision, device=settings.device, cache=settings.cache
    )
    opened = weights.OpenedModel(weights.resolve(source))
    precision = loading.choose_precision(settings.precision, opened, device)
    held = loading.precision_held(precision)
    cache = loading.cache_dtype(settings.cache, precision)
    config, on_cpu = opened.config, device.type == "cpu"
    most = config.max_position_embeddings
    # One server, many models: the limit is not an error for those that hold less anyway.
    context = None if settings.context is None else min(settings.context, most)
    return Plan(
        precision=precision,
        weights=weights.weight_bytes(config, held),
        needed=needed_bytes(config, held, min(context or most, 4096), cache=cache) if on_cpu else 0,
        cache_bytes_per_token=config.cache_bytes_per_token(cache),
        cache_tokens=max(32768, most),
        context=context,
    )


def _collect() -> None:
    import gc

    gc.collect()
    loading.give_back_memory()
