"""POST /api/count: how much of the context a question would take, before it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy import Row

from mull.serve.accounts.owner import Owner
from mull.serve.api.fields import (
    AnOwner,
    Form,
    Id,
    Ids,
    ModelName,
    System,
    Text,
    TheServing,
    TheStore,
)
from mull.serve.api.prompts import Told, as_prompt, tell
from mull.serve.reading import reader_of
from mull.serve.store import Store, attachments, messages, owned

router = APIRouter()


class Asked(Form):
    model: ModelName | None = None
    conversation: Id | None = None
    parent: Id | None = None
    text: Text = ""
    files: Ids = Field(default_factory=list)
    system: System | None = None


@router.post("/count")
def count(asked: Asked, owner: AnOwner, store: TheStore, parts: TheServing) -> dict[str, Any]:
    """Counted with the model's own tokenizer and template; the model need not be loaded."""
    told, system, model = _look_up(store, owner, asked)
    reader = reader_of(parts, parts.pool.find(asked.model or model))
    prompt = as_prompt(told, reader.tokenizer, reader.name)
    before = [{"role": "system", "content": system}] if system else []
    tokens = len(reader.template.render(before + prompt).ids)
    left = reader.context - tokens
    return {
        "prompt_tokens": tokens,
        "context": reader.context,
        "left": max(0, left),
        "fits": left > 0,
    }


def _look_up(store: Store, owner: Owner, asked: Asked) -> tuple[list[Told], str | None, str | None]:
    """What would be said, the system prompt, and the conversation's model."""
    told: list[Told] = []
    system, model = asked.system, None
    with store.read() as db:
        if asked.conversation is not None:
            conversation = owned.check(db, owner.name, asked.conversation)
            model = conversation.model
            system = conversation.system if system is None else system
            if asked.parent is not None:
                told = tell(db, messages.path(db, asked.conversation, asked.parent))
        files: Sequence[Row[Any]] = attachments.check_owned(db, owner.name, asked.files)
    if asked.text or files or not told:
        told.append(Told("user", asked.text, files=files))
    return told, system, model
