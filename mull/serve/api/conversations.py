"""/api/conversations, their messages, and /api/search."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field

from mull.serve.accounts.owner import Owner
from mull.serve.api.fields import (
    AnOwner,
    ChatSettings,
    Form,
    Id,
    Ids,
    Label,
    Labels,
    ModelName,
    System,
    Text,
    TheServing,
    TheStore,
    Title,
    page_of,
)
from mull.serve.errors import ApiError
from mull.serve.serving import Serving
from mull.serve.store import Store, conversations, messages, search

router = APIRouter()
Limit = Annotated[int, Query(ge=1, le=200)]
Word = Annotated[str, Query(max_length=search.MAX_QUERY)]


class NewConversation(Form):
    title: Title | None = None
    model: ModelName | None = None
    system: System | None = None
    settings: ChatSettings | None = None
    folder: Label | None = None
    tags: Labels | None = None


class ChangedConversation(NewConversation):
    pinned: bool | None = None
    head: Id | None = None


class NewMessage(Form):
    parent: Id | None = None
    text: Text = ""
    files: Ids = Field(default_factory=list)


@router.get("/conversations")
def list_conversations(
    owner: AnOwner,
    store: TheStore,
    q: Word | None = None,
    folder: Word | None = None,
    tag: Word | None = None,
    cursor: Annotated[str, Query(max_length=400)] | None = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    with store.read() as db:
        return conversations.page(
            db, owner.name, q=q, folder=folder, tag=tag, cursor=cursor, limit=limit
        )


@router.post("/conversations", status_code=201)
def create(asked: NewConversation, owner: AnOwner, store: TheStore) -> dict[str, Any]:
    with store.write() as db:
        id = conversations.create(db, owner.name, _values(asked))
        return conversations.get(db, owner.name, id)


@router.delete("/conversations", status_code=204)
async def remove_all(owner: AnOwner, store: TheStore, parts: TheServing) -> Response:
    await _remove(owner, store, parts, None)
    return Response(status_code=204)


@router.get("/conversations/{id}")
def get(id: str, owner: AnOwner, store: TheStore) -> dict[str, Any]:
    with store.read() as db:
        return conversations.get(db, owner.name, id)


@router.patch("/conversations/{id}")
def change(id: str, asked: ChangedConversation, owner: AnOwner, store: TheStore) -> dict[str, Any]:
    with store.write() as db:
        conversations.change(db, owner.name, id, _values(asked))
        return conversations.item(db, owner.name, id)


@router.delete("/conversations/{id}", status_code=204)
async def remove(id: str, owner: AnOwner, store: TheStore, parts: TheServing) -> Response:
    await _remove(owner, store, parts, id)
    return Response(status_code=204)


@router.post("/conversations/{id}/messages", status_code=201)
def add_message(id: str, asked: NewMessage, owner: AnOwner, store: TheStore) -> dict[str, Any]:
    if not asked.text.strip() and not asked.files:
        raise ApiError(400, "a message needs text or a file", param="text")
    with store.write() as db:
        return messages.add_question(
            db, owner.name, id, parent=asked.parent, text=asked.text, files=asked.files
        )


@router.get("/search")
def find(owner: AnOwner, store: TheStore, q: Word = "", limit: Limit = 30) -> dict[str, Any]:
    with store.read() as db:
        return page_of(search.find(db, owner.name, q, limit))


def _values(asked: NewConversation) -> dict[str, Any]:
    values = asked.given()
    if "settings" in values:
        values["settings"] = asked.settings.kept() if asked.settings else {}
    for name, empty in (("title", ""), ("tags", []), ("pinned", False)):
        if name in values and values[name] is None:
            values[name] = empty
    return values


async def _remove(owner: Owner, store: Store, parts: Serving, id: str | None) -> None:
    """One, or all of an owner's; what is deleted must not go on growing, nor be told again."""

    def look_up() -> list[str]:
        with store.read() as db:
            return messages.response_ids(db, owner.name, id)

    def delete() -> None:
        with store.write() as db:
            if id is None:
                conversations.remove_all(db, owner.name)
            else:
                conversations.remove_one(db, owner.name, id)
        store.erase()

    parts.answers.forget(await asyncio.to_thread(look_up))
    await asyncio.to_thread(delete)
