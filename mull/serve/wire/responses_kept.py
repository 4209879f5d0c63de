"""Responses that can be asked for again, or gone on from: in memory, the oldest forgotten first."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mull.serve.accounts.owner import Owner
from mull.serve.answers import RunningAnswer
from mull.serve.errors import ApiError
from mull.serve.wire.responses_answer import response_answer

MAX_KEPT = 1000
MAX_CHARACTERS = 50_000_000


@dataclass
class Kept:
    """messages: the conversation up to here, the response itself last once it has ended. input:
    what this response was asked with. whole: what it came to, once its events are let go."""

    id: str
    owner: Owner
    messages: list[dict[str, Any]]
    input: list[dict[str, Any]]
    form: dict[str, Any]
    answer: RunningAnswer | None = None
    whole: dict[str, Any] | None = None
    _answered: int = 0

    @property
    def is_finished(self) -> bool:
        return self.whole is not None or (self.answer is not None and self.answer.is_finished)

    @property
    def shown(self) -> dict[str, Any]:
        """The response as it is by now."""
        return response_answer(self.running) if self.whole is None else self.whole

    @property
    def running(self) -> RunningAnswer:
        """With its events; ApiError 400 where these were let go, 409 before it has begun."""
        if self.whole is not None:
            raise ApiError(400, f"the events of response {self.id} are gone: read it as a whole")
        if self.answer is None:
            raise ApiError(409, f"response {self.id} has not begun yet: its model is being loaded")
        return self.answer

    @property
    def characters(self) -> int:
        """Of the new part: earlier messages are shared with earlier responses."""
        said = sum(len(message.get("content") or "") for message in self.input)
        return said + self._answered

    def let_go(self) -> None:
        """Of the events of a response that has ended, each of which weighs more than its text."""
        self.whole, self.answer = self.shown, None

    async def remember(self, answer: RunningAnswer) -> None:
        """Put what was said into the conversation, ids and all, so that its cache serves again."""
        output = answer.output
        if output is None:
            return
        self._answered = len(output.text) + len(output.thinking)
        message: dict[str, Any] = {"role": "assistant", "content": output.text}
        if output.thinking:
            message["reasoning_content"] = output.thinking
        if output.tool_calls:
            message["tool_calls"] = [
                {"function": {"name": call.name, "arguments": call.arguments}}
                for call in output.tool_calls
            ]
        message["token_ids"] = output.token_ids
        message["model"] = answer.model
        self.messages.append(message)


class KeptResponses:
    """By id, each visible to its owner alone. Events are kept so many seconds after their end."""

    def __init__(self, keep_seconds: float) -> None:
        self.keep_seconds = keep_seconds
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def add(self, new: Kept) -> None:
        oldest_end = time.time() - self.keep_seconds
        for kept in self._kept.values():
            if kept.answer is not None and (kept.answer.ended or math.inf) < oldest_end:
                kept.let_go()
        self._kept[new.id] = new
        characters = sum(kept.characters for kept in self._kept.values())
        while len(self._kept) > MAX_KEPT or (characters > MAX_CHARACTERS and len(self._kept) > 1):
            _, oldest = self._kept.popitem(last=False)
            characters -= oldest.characters

    def get(self, owner: Owner, id: str) -> Kept:
        """ApiError 404 for one that is forgotten, was not stored, or is somebody else's."""
        found = self._kept.get(id)
        if found is None or found.owner != owner:
            raise ApiError(
                404, f"no response {id[:80]!r} is stored: it may have been forgotten by now"
            )
        return found

    def forget(self, id: str) -> None:
        self._kept.pop(id, None)

    def messages(self, owner: Owner, id: str | None, model: str) -> list[dict[str, Any]]:
        """The conversation that a response ended, or an empty one. Ids of tokens that another model
        sampled mean nothing to this one, so they are left out."""
        if id is None:
            return []
        found = self.get(owner, id)
        if not found.is_finished:
            raise ApiError(409, f"response {id[:80]!r} is still running: wait for its end")
        return [
            message
            if message.get("model") in (None, model)
            else {name: value for name, value in message.items() if name != "token_ids"}
            for message in found.messages
        ]

    def item(self, owner: Owner, id: str) -> Mapping[str, Any] | None:
        """An item of a response's output, by its own id."""
        # which holds the response's: msg_ID_NUMBER
        kept = self._kept.get(f"resp-{id.partition('_')[2].rpartition('_')[0]}")
        if kept is None or kept.owner != owner or not kept.is_finished:
            return None
        output: list[dict[str, Any]] = kept.shown["output"]
        return next((item for item in output if item["id"] == id), None)
