"""POST /api/count: how much of the context a question would take, before it is asked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy import Row

from mull import weights
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
from mull.serve.serving import Serving
from mull.serve.store import Store, attachments, messages, owned
from mull.text import ChatTemplate, Tokenizer

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


@dataclass(frozen=True)
class Reader:
    """What of a model is needed to read with it."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate
    context: int


def reader_of(parts: Serving, name: str) -> Reader:
    loaded = parts.pool.loaded.get(name)
    if loaded is not None:
        llm = loaded.llm
        return Reader(name, llm.tokenizer, llm.template, llm.context)
    files = weights.resolve(parts.pool.source_of(name))
    reader = _read(name, str(files.path), files.path.stat().st_mtime_ns)
    limit = parts.settings.context
    return reader if limit is None else Reader(**{**vars(reader), "context": limit})


@functools.lru_cache(maxsize=4)
def _read(name: str, path: str, _changed: int) -> Reader:
    opened = weights.OpenedModel(weights.resolve(path))
    tokenizer = Tokenizer.from_source(opened.tokenizer_source)
    template = ChatTemplate.for_tokenizer(tokenizer, tokenizer.chat_template)
    return Reader(name, tokenizer, template, opened.config.max_position_embeddings)


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
