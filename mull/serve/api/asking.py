"""POST /api/conversations/{id}/answers: begin an answer, and keep it as it grows."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy import Row

from mull.engine import Output
from mull.serve.accounts.owner import Owner
from mull.serve.answers import RunningAnswer, new_id
from mull.serve.api.fields import (
    AnOwner,
    Form,
    Id,
    ModelName,
    Sampling,
    TheServing,
    TheStore,
    ThinkBudget,
    Thinking,
)
from mull.serve.api.prompts import Told, as_prompt, tell
from mull.serve.errors import ApiError
from mull.serve.serving import Serving
from mull.serve.settings import Settings
from mull.serve.store import Store, messages, owned
from mull.serve.store.messages import Growth

router = APIRouter()


class NewAnswer(Form):
    parent: Id
    model: ModelName | None = None
    thinking: Thinking | None = None
    think_budget: ThinkBudget | None = None
    sampling: Sampling | None = None
    beside: Id | None = None
    continue_: Annotated[bool, Field(alias="continue")] = False


@router.post("/conversations/{id}/answers", status_code=201)
async def start_answer(
    id: str, asked: NewAnswer, owner: AnOwner, store: TheStore, parts: TheServing
) -> dict[str, Any]:
    """The message it becomes, already there, and the id under which its events can be read."""
    asking = await asyncio.to_thread(_look_up, store, owner, id, asked)
    model = await asyncio.to_thread(_model, asked, asking, parts)
    keeper = _Keeper(store, parts.settings, asking.started)
    async with parts.pool.lease(model) as llm:
        prompt = await asyncio.to_thread(
            as_prompt, asking.told, llm.tokenizer, model, is_continued=asked.continue_
        )
        answer = await parts.answers.start(
            owner,
            model,
            prompt,
            _options(asking.conversation, asked),
            id=new_id("ans"),
            on_progress=keeper.grow,
            on_end=keeper.finish,
        )
        answer.before = keeper.before
    try:
        keeper.message = await asyncio.to_thread(_store, store, owner, asking, asked, answer)
    except BaseException:
        answer.stop()
        raise
    finally:
        keeper.is_stored.set()
    return {"message": keeper.message, "response_id": answer.id}


@dataclass(frozen=True)
class _Asking:
    """What is asked: the conversation's row, what was said in it, the answer to go on with."""

    conversation: Row[Any]
    told: list[Told]
    started: Row[Any] | None


@dataclass
class _Keeper:
    """Writes one answer into its message. started: the answer that it continues."""

    store: Store
    settings: Settings
    started: Row[Any] | None
    message: dict[str, Any] | None = None
    is_stored: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def before(self) -> dict[str, Any] | None:
        if (begun := self.started) is None:
            return None
        return {"thinking": begun.thinking, "text": begun.text, "tool_calls": begun.tool_calls}

    async def grow(self, answer: RunningAnswer) -> None:
        await self.is_stored.wait()
        if self.message is not None:
            await self.store.writer.grow(self.message["id"], self._growth(answer))

    async def finish(self, answer: RunningAnswer) -> dict[str, Any] | None:
        await self.is_stored.wait()
        if self.message is None:
            return None
        growth, ending = self._growth(answer), self._ending(answer)
        id = self.message["id"]
        written = await self.store.writer.finish(id, growth, ending)
        if written is not None:
            return written
        told = {name: value for name, value in vars(growth).items() if name != "token_ids"}
        told = {**self.message, **told, **ending}
        if self.store.writer.holds(id):
            told["error"] = "this answer could not be saved yet; mull goes on trying"
        return told

    def _growth(self, answer: RunningAnswer) -> Growth:
        output = answer.output
        calls = answer.tool_calls if output is None else output.tool_calls
        text = answer.text if output is None else output.text
        thinking = answer.thinking if output is None else output.thinking
        ids: list[int] | None = list(answer.token_ids if output is None else output.token_ids)
        listed = [asdict(call) for call in calls]
        if (before := self.started) is not None:
            text, thinking = before.text + text, before.thinking + thinking
            listed = before.tool_calls + listed
            # With thinking the prompt was made of its text, so its ids are not those of the cache.
            known = before.token_ids is not None and not thinking
            ids = [*before.token_ids, *ids] if known and ids is not None else None
        return Growth(text, thinking, listed, ids)

    def _ending(self, answer: RunningAnswer) -> dict[str, Any]:
        output = answer.output
        state = "done"
        if answer.error is not None:
            state = "failed"
        elif answer.stopped_by is not None or output is None:
            state = "stopped"
        return {
            "state": state,
            "error": None if answer.error is None else answer.error.message,
            "finish_reason": None if output is None else output.finish_reason,
            "usage": None if output is None else asdict(output.usage),
            "timing": None if output is None else _timing(answer, output),
            "cost_usd": None if output is None else _cost(self.settings, output),
        }


def _look_up(store: Store, owner: Owner, id: str, asked: NewAnswer) -> _Asking:
    with store.read() as db:
        conversation = owned.check(db, owner.name, id)
        rows = messages.path(db, id, asked.parent)
        last = rows[-1]
        wanted = "assistant" if asked.continue_ else "user"
        if last.role != wanted:
            what = "an answer, to go on with" if asked.continue_ else "a question, to be answered"
            raise ApiError(400, f"parent must be {what}", param="parent")
        if last.state == "running":
            raise ApiError(409, "this answer is still running: stop it first, or wait")
        if asked.beside is not None:
            other = messages.check_in(db, id, asked.beside)
            if other.role != "assistant" or other.parent != asked.parent or asked.continue_:
                raise ApiError(400, "beside must be another answer to `parent`", param="beside")
        return _Asking(conversation, tell(db, rows), last if asked.continue_ else None)


def _model(asked: NewAnswer, asking: _Asking, parts: Serving) -> str:
    """The one that was wished for, or that began the answer, or that the conversation is with."""
    begun_by = None if asking.started is None else asking.started.model
    if begun_by not in parts.pool.names():
        begun_by = None  # it came with an import, or was removed
    return parts.pool.find(asked.model or begun_by or asking.conversation.model)


def _options(conversation: Row[Any], asked: NewAnswer) -> dict[str, Any]:
    """The conversation's own settings, and over them what this answer was asked with."""
    kept = conversation.settings
    sampling = dict(kept.get("sampling") or {})
    if asked.sampling is not None:
        sampling |= asked.sampling.given()
    budget = kept.get("think_budget")
    if "think_budget" in asked.model_fields_set:
        budget = asked.think_budget
    return {
        **sampling,
        "system": conversation.system or None,
        "thinking": asked.thinking or kept.get("thinking") or "auto",
        "think_budget": budget,
        "continue_last": asked.continue_,
    }


def _store(
    store: Store, owner: Owner, asking: _Asking, asked: NewAnswer, answer: RunningAnswer
) -> dict[str, Any]:
    id = asking.conversation.id
    named = {"model": answer.model, "response_id": answer.id}
    with store.write() as db:
        owned.check(db, owner.name, id)  # it may have been deleted meanwhile
        if asking.started is not None:
            return messages.continue_answer(db, id, asking.started.id, **named)
        beside = asked.beside
        return messages.start_answer(db, id, parent=asked.parent, beside=beside, **named)


def _timing(answer: RunningAnswer, output: Output) -> dict[str, Any]:
    timing = output.timing
    return {
        "ttft_s": timing.ttft_s,
        "thinking_s": answer.thinking_seconds,
        "tokens_per_s": timing.tokens_per_s,
        "total_s": timing.total_s,
    }


def _cost(settings: Settings, output: Output) -> float | None:
    """Its electricity, as if the machine had done nothing else."""
    if settings.watts is None or settings.usd_per_kwh is None or output.timing.total_s is None:
        return None
    return output.timing.total_s * settings.watts / 3.6e6 * settings.usd_per_kwh
