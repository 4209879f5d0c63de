"""What an owner likes: settings of the page, and presets of system prompt and sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from mull.serve.errors import ApiError
from mull.serve.store import erasing
from mull.serve.store.tables import presets, settings
from mull.serve.store.values import new_id, now

MAX_PRESETS = 500


def read_settings(db: Connection, owner: str) -> dict[str, Any]:
    found = db.scalar(select(settings.c["values"]).where(settings.c.owner == owner))
    return found or {}


def write_settings(db: Connection, owner: str, values: Mapping[str, Any]) -> None:
    """All of them: what was there before is gone."""
    db.execute(delete(settings).where(settings.c.owner == owner))
    db.execute(insert(settings).values({"owner": owner, "values": dict(values)}))


def remove_all(db: Connection, owner: str) -> None:
    """Settings and presets of an owner who goes."""
    for table in (settings, presets):
        db.execute(delete(table).where(table.c.owner == owner))


def list_presets(db: Connection, owner: str) -> list[dict[str, Any]]:
    query = select(presets).where(presets.c.owner == owner)
    return [_as_json(row) for row in db.execute(query.order_by(presets.c.created, presets.c.id))]


def get_preset(db: Connection, owner: str, id: str) -> dict[str, Any]:
    """ApiError 404."""
    query = select(presets).where(presets.c.id == id, presets.c.owner == owner)
    row = db.execute(query).first()
    if row is None:
        raise ApiError(404, f"no preset {id[:80]!r}")
    return _as_json(row)


def add_preset(db: Connection, owner: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """values: name, system, sampling, thinking, think_budget."""
    mine = select(func.count()).select_from(presets).where(presets.c.owner == owner)
    if (db.scalar(mine) or 0) >= MAX_PRESETS:
        raise ApiError(400, f"there are {MAX_PRESETS} presets already: delete one first")
    id = new_id()
    db.execute(insert(presets).values({**values, "id": id, "owner": owner, "created": now()}))
    return get_preset(db, owner, id)


def change_preset(db: Connection, owner: str, id: str, values: Mapping[str, Any]) -> dict[str, Any]:
    get_preset(db, owner, id)
    if values:
        db.execute(update(presets).where(presets.c.id == id).values(dict(values)))
    return get_preset(db, owner, id)


def remove_preset(db: Connection, owner: str, id: str) -> None:
    get_preset(db, owner, id)
    db.execute(delete(presets).where(presets.c.id == id))
    erasing.note(db)


def _as_json(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "system": row.system,
        "sampling": row.sampling,
        "thinking": row.thinking,
        "think_budget": row.think_budget,
    }
