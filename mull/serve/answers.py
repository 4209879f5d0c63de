"""Answers while they run, and for some minutes after: an answer can outlive its connection.

A `RunningAnswer` numbers its events from 1 and keeps them, so any number of listeners may follow it
from any number on. One that was not asked to be kept ends when its last listener leaves.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal

from mull.engine import AsyncRequestStream, Event, Output, ToolCall
from mull.llm import LLM, Prompt
from mull.serve.accounts.owner import Owner
from mull.serve.errors import ApiError, as_api_error
from mull.serve.models import ModelPool
from mull.serve.settings import Settings

Hook = Callable[["RunningAnswer"], Coroutine[Any, Any, Any]]
Stopper = Literal["owner", "client left", "shutdown"]
PROGRESS_SECONDS = 0.9


@dataclass(frozen=True)
class Piece:
    """One numbered event: of the engine, or the error that ended it. `last`: none follows."""

    number: int
    event: Event | None = None
    error: ApiError | None = None
    last: bool = False


class RunningAnswer:
    """One request under way. Everything here happens in the server's asyncio loop.

    Once it has ended it holds nothing of its model but the tokenizer: it may be read long after the
    model was unloaded. samples: how many answers it makes (`n`). form: what the wire format wants
    to remember of the request. before: the message that it goes on with, if it does. result: what
    `on_end` returned, there before the last piece is.
    """

    def __init__(
        self,
        id: str,
        owner: Owner,
        llm: LLM,
        stream: AsyncRequestStream,
        *,
        samples: int,
        prompt_ids: Sequence[int],
        keep: bool,
    ) -> None:
        self.id = id
        self.owner = owner
        self.model = llm.name
        self.tokenizer = llm.tokenizer
        self.samples = samples
        self.prompt_ids = prompt_ids
        self.is_kept = keep
        self.created = time.time()
        self.ended: float | None = None
        self.pieces: list[Piece] = []
        self.outputs: dict[int, Output] = {}
        self.error: ApiError | None = None
        self.stopped_by: Stopper | None = None
        self.thinking_tokens = 0
        self.thinking_seconds: float | None = None  # until its first word of answer
        self.completion_tokens = 0
        self.form: Any = None
        self.before: dict[str, Any] | None = None
        self.result: Any = None
        self._texts: dict[str, list[str]] = {"thinking": [], "answer": []}
        self.tool_calls: list[ToolCall] = []
        self.token_ids: list[int] = []
        self._stream: AsyncRequestStream | None = stream
        self._listeners: set[asyncio.Event] = set()

    @property
    def is_finished(self) -> bool:
        return bool(self.pieces) and self.pieces[-1].last

    @property
    def thinking(self) -> str:
        """Of the first sample, so far."""
        return "".join(self._texts["thinking"])

    @property
    def text(self) -> str:
        return "".join(self._texts["answer"])

    @property
    def output(self) -> Output | None:
        """The first sample, once it is whole."""
        return self.outputs.get(0)

    @property
    def queue_position(self) -> int | None:
        """1 for who is served next, 0 once being served; None where it is not known yet."""
        return None if self._stream is None else self._stream.queue_position

    async def events(self, after: int = 0, *, keep_alive: float) -> AsyncIterator[Piece | None]:
        """Every piece with a number above `after`; None when there was none for so many seconds."""
        changed, loop = asyncio.Event(), asyncio.get_running_loop()
        self._listeners.add(changed)
        try:
            position = max(0, after)
            while True:
                while position < len(self.pieces):
                    piece = self.pieces[position]
                    position += 1
                    yield piece
                if self.is_finished:
                    return
                changed.clear()
                # Not `wait_for`, which makes a task for every token.
                timer = loop.call_later(keep_alive, changed.set)
                try:
                    await changed.wait()
                finally:
                    timer.cancel()
                if position >= len(self.pieces):
                    yield None
        finally:
            self._listeners.discard(changed)
            if not self._listeners and not self.is_kept:
                self.stop("client left")

    async def finished(self) -> None:
        """Wait for the end; whoever stops waiting leaves as a listener does."""
        async for _ in self.events(len(self.pieces), keep_alive=3600):
            pass

    def stop(self, by: Stopper = "owner") -> None:
        """End it with what there is; its memory in the cache is free before the next step."""
        if self._stream is not None:
            self.stopped_by = self.stopped_by or by
            self._stream.cancel()

    def answer_now(self) -> None:
        """Close the thinking and go on to the answer."""
        if self._stream is not None:
            self._stream.answer_now()

    def take(self, event: Event) -> None:
        if event.output is not None:
            self.outputs[event.index] = event.output
        new = len(event.token_ids)
        self.completion_tokens += new
        if event.kind == "thinking":
            self.thinking_tokens += new
        elif self.thinking_tokens and self.thinking_seconds is None:
            self.thinking_seconds = time.time() - self.created
        if event.index == 0:
            self.token_ids += event.token_ids
            if event.kind in self._texts:
                self._texts[event.kind].append(event.text)
            if event.tool_call is not None:
                self.tool_calls.append(event.tool_call)
        is_last = len(self.outputs) == self.samples
        if not is_last:
            self._append(Piece(len(self.pieces) + 1, event))

    def finish(self, *, event: Event | None = None, error: ApiError | None = None) -> None:
        self.ended = time.time()
        self.error = error
        self._stream = None
        self._append(Piece(len(self.pieces) + 1, event, error, last=True))

    def _append(self, piece: Piece) -> None:
        self.pieces.append(piece)
        for changed in self._listeners:
            changed.set()


class RunningAnswers:
    """All answers of a server, by id, each visible to its owner alone.

    on_start: called with the owner before anything is begun; raises ApiError where that must not
    be. on_end: called with every answer that has ended, kept or not (budgets, metrics).
    """

    def __init__(self, pool: ModelPool, settings: Settings) -> None:
        self.pool = pool
        self.settings = settings
        self.on_start: list[Callable[[Owner], None]] = []
        self.on_end: list[Callable[[RunningAnswer], None]] = []
        self._answers: dict[str, RunningAnswer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_closing = False

    async def start(
        self,
        owner: Owner,
        model: str | None,
        prompt: Prompt,
        options: Mapping[str, Any],
        *,
        id: str | None = None,
        keep: bool = True,
        form: Any = None,
        on_progress: Hook | None = None,
        on_end: Hook | None = None,
    ) -> RunningAnswer:
        """Load the model if need be, submit, and return the answer as it begins.

        prompt and options are those of `LLM.request`. keep: it goes on without listeners, and can
        be read for some minutes after its end. on_progress is awaited about once a second while it
        grows, on_end once before its last event is out. Raises what makes it impossible.
        """
        self._check_open()
        for admit in self.on_start:
            admit(owner)
        stack = AsyncExitStack()
        async with stack:
            llm = await stack.enter_async_context(self.pool.lease(model))
            request = await asyncio.to_thread(llm.request, prompt, namespace=owner.name, **options)
            self._check_open()
            stream = llm.runner.submit_async(request)
            answer = RunningAnswer(
                id or new_id("ans"),
                owner,
                llm,
                stream,
                samples=request.sampling.n,
                prompt_ids=request.prompt_ids,
                keep=keep,
            )
            answer.form = form
            self._answers[answer.id] = answer
            task = asyncio.create_task(
                self._run(answer, stream, stack.pop_all(), on_progress, on_end)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return answer

    def get(self, owner: Owner, id: str) -> RunningAnswer:
        """ApiError 404 for one that is forgotten, never was, or is somebody else's."""
        answer = self._answers.get(id)
        if answer is None or answer.owner != owner:
            raise ApiError(404, f"no answer {id[:80]!r}: it may have been forgotten by now")
        return answer

    @property
    def running(self) -> list[RunningAnswer]:
        return [answer for answer in self._answers.values() if not answer.is_finished]

    def forget(self, ids: Iterable[str]) -> None:
        """Let go of answers whose conversation is deleted; those that run are ended first."""
        for id in ids:
            answer = self._answers.pop(id, None)
            if answer is not None:
                answer.stop()

    def forget_old(self) -> None:
        """Let go of answers that ended more than `keep_minutes` ago."""
        oldest = time.time() - self.settings.keep_minutes * 60
        for answer in list(self._answers.values()):
            if answer.ended is not None and answer.ended < oldest:
                del self._answers[answer.id]

    async def close(self, seconds: float) -> None:
        """Take no more; give those that run so long to finish, then end them as they are."""
        self.is_closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for answer in self.running:
            answer.stop("shutdown")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)

    async def _run(
        self,
        answer: RunningAnswer,
        stream: AsyncRequestStream,
        stack: AsyncExitStack,
        on_progress: Hook | None,
        on_end: Hook | None,
    ) -> None:
        last: Event | None = None
        error: ApiError | None = None
        # Beside the stream: a store that is slow just now must not hold up who reads.
        telling: asyncio.Task[Any] | None = None
        told = time.monotonic()
        async with stack:
            try:
                async for event in stream:
                    answer.take(event)
                    last = event
                    if on_progress is None or time.monotonic() - told < PROGRESS_SECONDS:
                        continue
                    if telling is None or telling.done():
                        telling, told = asyncio.create_task(on_progress(answer)), time.monotonic()
            except Exception as failure:
                error = as_api_error(failure)
                if error is not failure:
                    error.__cause__ = failure  # for the log
            answer.error = error
            if telling is not None:
                await asyncio.wait({telling})
            try:
                if on_end is not None:
                    answer.result = await on_end(answer)
                for tell in self.on_end:
                    tell(answer)
            finally:
                answer.finish(event=None if error else last, error=error)
                if not answer.is_kept:
                    self._answers.pop(answer.id, None)

    def _check_open(self) -> None:
        if self.is_closing:
            raise ApiError(503, "the server is shutting down: try again", retry_after=10)


def new_id(kind: str) -> str:
    """An id nobody can guess."""
    return f"{kind}-{secrets.token_urlsafe(18)}"
