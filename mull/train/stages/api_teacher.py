"""A teacher behind an OpenAI-compatible API: its answers, thinking included where it shows it.

The address is the API's base, with the model's name after a `#`:
`https://api.deepseek.com/v1#deepseek-reasoner`. A key is read from MULL_TEACHER_KEY, so that it
stands in no recipe.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mull.errors import TrainError
from mull.tasks import Problem
from mull.train.recipe import Distill
from mull.train.rewards import Judge
from mull.train.rollout import Answer

KEY_NAME = "MULL_TEACHER_KEY"
_AT_ONCE = 8
_TIMEOUT_S = 600.0
_PATIENCE_S = (1.0, 5.0, 20.0)
# Worth asking again: too many requests, and errors of the server.
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_MOST_BYTES = 1 << 26


class ApiTeacher:
    """check: called while answers are awaited; what it raises ends the waiting."""

    def __init__(self, stage: Distill, judge: Judge, check: Callable[[], None]) -> None:
        base, _, self._model = stage.teacher.partition("#")
        self._url = base.rstrip("/") + "/chat/completions"
        self._stage, self.judge, self._check = stage, judge, check
        self.tokens = 0

    def answers(self, problems: Sequence[Problem], first: int) -> list[list[Answer]]:
        each = self._stage.samples
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            futures = [pool.submit(self._ask, problem) for problem in problems for _ in range(each)]
            try:
                found = [self._awaited(future) for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self.tokens += sum(tokens for _, tokens in found)
        answers = [answer for answer, _ in found]
        return [answers[at : at + each] for at in range(0, len(answers), each)]

    def _awaited(self, future: Future[tuple[Answer, int]]) -> tuple[Answer, int]:
        while not future.done():
            self._check()
            time.sleep(0.02)
        return future.result()

    def _ask(self, problem: Problem) -> tuple[Answer, int]:
        sampling = self._stage.sampling
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": problem.question}],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        reply = self._post(body | ({"model": self._model} if self._model else {}))
        try:
            choice = reply["choices"][0]
            message = choice["message"]
            content = message.get("content") or ""
            thinking = message.get("reasoning_content") or message.get("reasoning") or ""
            tokens = int(reply.get("usage", {}).get("completion_tokens", 0))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise TrainError(
                f"{self._url}: the answer is no chat completion; check the address"
            ) from None
        if not thinking and "</think>" in content:
            thinking, _, content = content.partition("</think>")
            thinking = thinking.removeprefix("<think>")
        return Answer(
            ids=[],
            logprobs=[],
            forced=frozenset(),
            is_truncated=choice.get("finish_reason") == "length",
            thinking=thinking.strip("\n"),
            text=content.strip("\n"),
        ), tokens

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_NAME):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        for patience in (*_PATIENCE_S, None):
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
                    return json.loads(reply.read(_MOST_BYTES))
            except urllib.error.HTTPError as error:
                if error.code not in _PASSING or patience is None:
                    hint = f"; set {KEY_NAME}" if error.code in (401, 403) else ""
                    raise TrainError(
                        f"{self._url}: answers {error.code} {error.reason}{hint}"
                    ) from None
            except (OSError, ValueError) as error:
                if patience is None:
                    raise TrainError(f"{self._url}: cannot be asked ({error})") from None
            time.sleep(patience)
        raise AssertionError("the last attempt returns or raises")
