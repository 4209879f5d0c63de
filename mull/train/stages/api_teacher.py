"""A teacher behind an OpenAI-compatible API: its answers, thinking included where it shows it.

The address is the API's base, with the model's name after a `#`:
`https://api.deepseek.com/v1#deepseek-reasoner`. A key is read from MULL_TEACHER_KEY, so that it
stands in no recipe.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, ClassVar

from mull.errors import TrainError
from mull.harmless import one_line
from mull.tasks import Problem
from mull.train.recipe_stages import Distill
from mull.train.rewards import Judge
from mull.train.rollout import Answer
from mull.train.session import StopAsked

KEY_NAME = "MULL_TEACHER_KEY"
_AT_ONCE = 8
_TIMEOUT_S = 600.0
_PATIENCE_S = (1.0, 5.0, 20.0)
_POLL_S = 0.05
# Worth asking again: too many requests, and errors of the server.
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
# What an API says to a question it will not answer, however often it is asked.
_REFUSING = frozenset({400, 413, 422, 451})
_MOST_BYTES = 1 << 26
_log = logging.getLogger(__name__)

_Reply = tuple[Answer, int]  # with its number of tokens
_Came = tuple[int, _Reply | Exception]


class _Refused(Exception):  # noqa: N818 - an answer of the API, which the stage counts
    """This question gets no answer; others may."""


class ApiTeacher:
    """check: called while answers are awaited; what it raises ends the waiting."""

    # Each is paid for: at most so many are lost when the run is stopped in the middle.
    at_once: ClassVar[int] = 64

    def __init__(self, stage: Distill, judge: Judge, check: Callable[[], None]) -> None:
        base, _, self._model = stage.teacher.partition("#")
        self._url = base.rstrip("/") + "/chat/completions"
        self._stage, self.judge, self._check = stage, judge, check
        self.tokens = 0

    def answers(self, problems: Sequence[Problem], first: int) -> list[list[Answer]]:
        """A question that is refused has an empty answer. Raises TrainError where all are, or none
        is answered."""
        each = self._stage.samples
        asked = [problem for problem in problems for _ in range(each)]
        replies: dict[int, Answer] = {}
        refused: list[str] = []
        try:
            for place, reply in self._replies(asked):
                if isinstance(reply, _Refused):
                    refused.append(str(reply))
                    reply = _EMPTY, 0
                replies[place] = reply[0]
                self.tokens += reply[1]
        except (TrainError, StopAsked):
            # What is paid for is kept; what ended it ends the next call, which finds nothing new.
            if any(place not in replies for place in range(each)):
                raise
        if refused:
            self._complain(refused, len(asked))
        whole = next((place for place in range(len(asked)) if place not in replies), len(asked))
        ends = range(each, whole + 1, each)
        return [[replies[place] for place in range(end - each, end)] for end in ends]

    def _complain(self, refused: list[str], asked: int) -> None:
        if len(refused) == asked >= _AT_ONCE:
            raise TrainError(f"{self._url}: refuses every question ({refused[0]})")
        _log.warning(
            "%s refuses %d of %d questions (%s): they count as not answered",
            self._url, len(refused), asked, refused[0],
        )  # fmt: skip

    def _replies(self, asked: Sequence[Problem]) -> Iterator[tuple[int, _Reply | _Refused]]:
        """The reply to each, with its place, as they come."""
        waiting: SimpleQueue[int] = SimpleQueue()
        for place in range(len(asked)):
            waiting.put(place)
        came: SimpleQueue[_Came] = SimpleQueue()
        stop = Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    place = waiting.get_nowait()
                except Empty:
                    return
                try:
                    came.put((place, self._ask(asked[place], stop)))
                except Exception as error:
                    came.put((place, error))

        for _ in range(min(_AT_ONCE, len(asked))):
            # A daemon: a request under way, of ten minutes perhaps, keeps no process from ending.
            Thread(target=work, daemon=True).start()
        try:
            for _ in asked:
                place, reply = self._awaited(came)
                if isinstance(reply, Exception) and not isinstance(reply, _Refused):
                    raise reply
                yield place, reply
        except StopAsked:
            stop.set()
            # What has come by now is paid for, too.
            while not came.empty():
                place, reply = came.get()
                if isinstance(reply, tuple | _Refused):
                    yield place, reply
            raise
        finally:
            stop.set()

    def _awaited(self, came: SimpleQueue[_Came]) -> _Came:
        while True:
            self._check()
            try:
                return came.get(timeout=_POLL_S)
            except Empty:
                continue

    def _ask(self, problem: Problem, stop: Event) -> _Reply:
        sampling = self._stage.sampling
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": problem.question}],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        reply = self._post(body | ({"model": self._model} if self._model else {}), stop)
        try:
            choice = reply["choices"][0]
            message = choice["message"]
            content = str(message.get("content") or "")
            thinking = str(message.get("reasoning_content") or message.get("reasoning") or "")
            tokens = int((reply.get("usage") or {}).get("completion_tokens") or 0)
            is_truncated = choice.get("finish_reason") == "length"
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise _Refused("what it gives is no chat completion; check the address") from None
        if not thinking and "</think>" in content:
            thinking, _, content = content.partition("</think>")
            thinking = thinking.removeprefix("<think>")
        return _answer(thinking.strip("\n"), content.strip("\n"), is_truncated), tokens

    def _post(self, body: dict[str, Any], stop: Event) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_NAME):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        for patience in (*_PATIENCE_S, None):
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
                    return json.loads(reply.read(_MOST_BYTES))
            except urllib.error.HTTPError as error:
                said = f"{error.code} {_said(error)}"
                if error.code in _REFUSING:
                    raise _Refused(said) from None
                if error.code not in _PASSING or patience is None:
                    hint = f"; set {KEY_NAME}" if error.code in (401, 403) else ""
                    raise TrainError(f"{self._url}: answers {said}{hint}") from None
            except http.client.InvalidURL as error:
                raise TrainError(f"{self._url}: is no address ({error}); mend teacher") from None
            except (OSError, ValueError, http.client.HTTPException) as error:
                if patience is None:
                    raise TrainError(f"{self._url}: cannot be asked ({error})") from None
            if stop.wait(patience):
                raise TrainError(f"{self._url}: is no longer asked")
        raise AssertionError("the last attempt returns or raises")


def _answer(thinking: str, text: str, is_truncated: bool) -> Answer:
    return Answer([], [], frozenset(), is_truncated=is_truncated, thinking=thinking, text=text)


_EMPTY = _answer("", "", False)


def _said(error: urllib.error.HTTPError) -> str:
    """The server's own words for its error, in one line."""
    try:
        text = error.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        text = ""
    return one_line(text)[:200] or str(error.reason)
