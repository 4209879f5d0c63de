"""The engine in its own thread, and streams of events for callers, sync and async.

Callers never touch the engine: they put commands into an inbox which the thread empties before each
step, so submitting never waits for a step to finish.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress

import torch

from mull import kernels
from mull.engine.counters import Counters
from mull.engine.engine import Engine
from mull.engine.request import Event, Output, Request
from mull.errors import MullError, QueueFullError, RequestError

Item = Event | MullError
_FULL_QUEUE_S = 0.02  # until another look whether it has room


class _Loop:
    """What the thread works on; it must not refer to the EngineRunner, whose end stops it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.threads = torch.get_num_threads()
        self.changed = threading.Condition()
        self.inbox: deque[Callable[[], None]] = deque()
        self.is_closing = False
        # Samples submitted by callers which the engine has not seen yet.
        self.arriving = 0
        self.streams: dict[int, _Stream] = {}
        self.unfinished: dict[int, int] = {}

    def run(self) -> None:
        # A new thread takes over what the process has set last: one, while another model is loaded.
        torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            while self._wait():
                try:
                    self._empty_inbox()
                    for event in self.engine.step():
                        self._deliver(event)
                except Exception as error:
                    self._fail(error)
        finally:
            with self.changed:
                self.is_closing = True
                self.engine.interrupt(is_wanted=False)
            try:
                self._empty_inbox()
            finally:
                for event in self.engine.cancel_all():
                    self._deliver(event)

    def put(self, command: Callable[[], None]) -> None:
        with self.changed:
            self.inbox.append(command)
            self.engine.interrupt()
            self.changed.notify()

    def submit(self, request: Request, stream: _Stream) -> None:
        try:
            # In one go, so that whoever counts finds it either here or there.
            with self.changed:
                self.arriving -= request.sampling.n
                request_id = self.engine.submit(request, is_admitted=True)
        except MullError as error:
            stream.deliver(error)
            return
        except Exception as error:
            stream.deliver(_failure(error))  # not among `streams` yet, so `_fail` would forget it
            raise
        stream.request_id = request_id
        self.streams[request_id] = stream
        self.unfinished[request_id] = request.sampling.n

    def _wait(self) -> bool:
        with self.changed:
            while not (self.inbox or self.is_closing or self.engine.has_work):
                self.changed.wait()
            # Whoever interrupted has a command in the inbox, which is emptied next.
            self.engine.interrupt(is_wanted=self.is_closing)
            return not self.is_closing

    def _empty_inbox(self) -> None:
        while self.inbox:
            try:
                self.inbox.popleft()()
            except Exception as error:
                self._fail(error)

    def _deliver(self, event: Event) -> None:
        stream = self.streams[event.request_id]
        if event.kind == "end":
            self.unfinished[event.request_id] -= 1
            if self.unfinished[event.request_id] == 0:
                del self.unfinished[event.request_id], self.streams[event.request_id]
        stream.deliver(event)

    def _fail(self, error: Exception) -> None:
        """Tell every waiting caller, give all blocks back, and stay ready for the next request."""
        failure = _failure(error)
        streams, self.streams, self.unfinished = list(self.streams.values()), {}, {}
        try:
            self.engine.cancel_all()
        finally:
            for stream in streams:
                stream.deliver(failure)


def _failure(error: Exception) -> MullError:
    failure = MullError(
        f"generation failed in the engine ({type(error).__name__}: {error}); "
        "the request can be sent again"
    )
    failure.__cause__ = error
    return failure


class EngineRunner:
    """Owns an engine and the thread that steps it. Close it, or use it in a `with` statement."""

    def __init__(self, engine: Engine) -> None:
        self._loop = _Loop(engine)
        self._thread = threading.Thread(target=self._loop.run, name="mull-engine", daemon=True)
        self._finalizer = weakref.finalize(self, _shut_down, self._loop, self._thread)
        # From here on the runner's thread computes, and idle teams of others slow its own down.
        kernels.release_threads()
        self._thread.start()

    @property
    def counters(self) -> Counters:
        return self._loop.engine.counters

    def submit(self, request: Request) -> RequestStream:
        """Raises RequestError or QueueFullError at once; everything else comes in the stream."""
        stream = RequestStream(self._loop, request.sampling.n)
        self._submit(request, stream)
        return stream

    def submit_async(self, request: Request) -> AsyncRequestStream:
        """As `submit`, to be called and iterated within a running asyncio loop."""
        stream = AsyncRequestStream(self._loop, request.sampling.n)
        self._submit(request, stream)
        return stream

    def run(self, requests: Iterable[Request]) -> list[list[Output]]:
        """All samples of every request, in order. What finds the queue full waits for room."""
        results: list[list[Output]] = []
        streams: deque[RequestStream] = deque()
        try:
            for request in requests:
                while True:
                    try:
                        streams.append(self.submit(request))
                        break
                    except QueueFullError:
                        if not (streams or results):
                            raise
                    # Not for the oldest's end, which may be long after all others'.
                    time.sleep(_FULL_QUEUE_S)
            while streams:
                results.append(streams.popleft().result())
        finally:
            for stream in streams:
                stream.cancel()
        return results

    def close(self) -> None:
        """Finish the step under way, cancel what is left, and end the thread."""
        self._finalizer()

    def __enter__(self) -> EngineRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, request: Request, stream: _Stream) -> None:
        loop = self._loop
        loop.engine.check(request)
        with loop.changed:
            if loop.is_closing:
                raise RequestError("the engine is closed; load the model again")
            loop.engine.scheduler.check_room(loop.arriving)
            loop.arriving += request.sampling.n
            loop.inbox.append(lambda: loop.submit(request, stream))
            loop.engine.interrupt()
            loop.changed.notify()


class _Stream(ABC):
    """What a request's two kinds of stream share: its id, once it has one, and its end."""

    def __init__(self, loop: _Loop, samples: int) -> None:
        self._loop = loop
        self._unfinished = samples
        self.request_id: int | None = None
        self.outputs: dict[int, Output] = {}

    @abstractmethod
    def deliver(self, item: Item) -> None:
        """Called in the engine's thread."""

    @property
    def is_finished(self) -> bool:
        return self._unfinished == 0

    @property
    def queue_position(self) -> int | None:
        """1 for who is served next, 0 once being served; None before the engine has seen it."""
        if self.request_id is None:
            return None
        waiting = list(self._loop.engine.scheduler.waiting)  # another thread changes it
        ids = [seq.request_id for seq in waiting]
        return ids.index(self.request_id) + 1 if self.request_id in ids else 0

    def cancel(self) -> None:
        """Give up the request: its blocks are free before the next step. Harmless when finished."""
        if not self.is_finished:
            self._command(self._loop.engine.cancel)

    def answer_now(self) -> None:
        """Close the thinking and go on to the answer."""
        self._command(self._loop.engine.answer_now)

    def _command(self, act: Callable[[int], bool]) -> None:
        def run() -> None:
            # Commands run in order, so the submission before this one has set the id or failed.
            if self.request_id is not None:
                act(self.request_id)

        self._loop.put(run)

    def _taken(self, item: Item) -> Event:
        if isinstance(item, MullError):
            self._unfinished = 0
            raise item
        if item.output is not None:
            self.outputs[item.index] = item.output
            self._unfinished -= 1
        return item


class RequestStream(_Stream):
    """Iterate for events; who stops iterating before the end cancels the request."""

    def __init__(self, loop: _Loop, samples: int) -> None:
        super().__init__(loop, samples)
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()

    def deliver(self, item: Item) -> None:
        self._items.put(item)

    def __iter__(self) -> Iterator[Event]:
        try:
            while not self.is_finished:
                yield self._taken(self._items.get())
        finally:
            self.cancel()

    def result(self) -> list[Output]:
        """Wait for the end of all samples; in order of index."""
        for _ in self:
            pass
        return [self.outputs[index] for index in sorted(self.outputs)]


class AsyncRequestStream(_Stream):
    """The same for `async for`, within the asyncio loop in which it was made."""

    def __init__(self, loop: _Loop, samples: int) -> None:
        super().__init__(loop, samples)
        self._asyncio = asyncio.get_running_loop()
        self._items: asyncio.Queue[Item] = asyncio.Queue()

    def deliver(self, item: Item) -> None:
        # The caller's loop may be gone, even since a look at it; nobody is left to tell then.
        with suppress(RuntimeError):
            self._asyncio.call_soon_threadsafe(self._items.put_nowait, item)

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            while not self.is_finished:
                yield self._taken(await self._items.get())
        finally:
            self.cancel()

    async def result(self) -> list[Output]:
        async for _ in self:
            pass
        return [self.outputs[index] for index in sorted(self.outputs)]


def _shut_down(loop: _Loop, thread: threading.Thread) -> None:
    with loop.changed:
        loop.is_closing = True
        loop.engine.interrupt()
        loop.changed.notify()
    if thread is not threading.current_thread():
        thread.join()
