"""/api/settings and /api/presets."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from mull.serve.api.fields import (
    AnOwner,
    Form,
    Sampling,
    System,
    TheStore,
    ThinkBudget,
    Thinking,
    page_of,
)
from mull.serve.errors import ApiError
from mull.serve.store import preferences

router = APIRouter()
MAX_SETTINGS_BYTES = 32 * 1024


class NewPreset(Form):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    system: System | None = None
    sampling: Sampling | None = None
    thinking: Thinking | None = None
    think_budget: ThinkBudget | None = None


class ChangedPreset(NewPreset):
    name: Annotated[str, Field(min_length=1, max_length=100)] = ""


@router.get("/settings")
def get_settings(owner: AnOwner, store: TheStore) -> dict[str, Any]:
    with store.read() as db:
        return preferences.read_settings(db, owner.name)


@router.put("/settings")
def put_settings(values: dict[str, Any], owner: AnOwner, store: TheStore) -> dict[str, Any]:
    with store.write() as db:
        preferences.write_settings(db, owner.name, _bounded(values))
        return preferences.read_settings(db, owner.name)


@router.patch("/settings")
def change_settings(values: dict[str, Any], owner: AnOwner, store: TheStore) -> dict[str, Any]:
    """Those given; null: no longer set. Two pages of one owner leave each other's alone."""
    with store.write() as db:
        settings = preferences.read_settings(db, owner.name) | values
        kept = {name: value for name, value in settings.items() if value is not None}
        preferences.write_settings(db, owner.name, _bounded(kept))
        return preferences.read_settings(db, owner.name)


@router.get("/presets")
def list_presets(owner: AnOwner, store: TheStore) -> dict[str, Any]:
    with store.read() as db:
        return page_of(preferences.list_presets(db, owner.name))


@router.post("/presets", status_code=201)
def add_preset(asked: NewPreset, owner: AnOwner, store: TheStore) -> dict[str, Any]:
    with store.write() as db:
        return preferences.add_preset(db, owner.name, preset_values(asked))


@router.patch("/presets/{id}")
def change_preset(id: str, asked: ChangedPreset, owner: AnOwner, store: TheStore) -> dict[str, Any]:
    values = asked.given()
    if "sampling" in values:
        values["sampling"] = _sampling(asked)
    with store.write() as db:
        return preferences.change_preset(db, owner.name, id, values)


@router.delete("/presets/{id}", status_code=204)
def remove_preset(id: str, owner: AnOwner, store: TheStore) -> Response:
    with store.write() as db:
        preferences.remove_preset(db, owner.name, id)
    store.erase()
    return Response(status_code=204)


def _bounded(settings: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(settings)) > MAX_SETTINGS_BYTES:
        raise ApiError(413, f"settings may take {MAX_SETTINGS_BYTES:,} bytes: leave some out")
    return settings


def preset_values(asked: NewPreset) -> dict[str, Any]:
    """As the store takes them."""
    return {**asked.model_dump(), "sampling": _sampling(asked)}


def _sampling(asked: NewPreset) -> dict[str, Any]:
    return asked.sampling.model_dump(exclude_none=True) if asked.sampling else {}
