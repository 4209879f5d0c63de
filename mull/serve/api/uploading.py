"""/api/files, and /api/import with the exports that go the other way."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Response, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from mull.errors import RequestError
from mull.serve.accounts.owner import Owner
from mull.serve.api.fields import AnOwner, ChatSettings, TheStore
from mull.serve.api.preferences import MAX_SETTINGS_BYTES, NewPreset, preset_values
from mull.serve.errors import ApiError
from mull.serve.store import Store, attachments, exporting, importing, owned, preferences
from mull.serve.uploads import process, texts

router = APIRouter()
_IMPORT_SECONDS = 120.0
_IMPORT_BYTES = 512 * 2**20
_MAX_NAME = 200
_MAX_SKIPPED = 200


@router.post("/files", status_code=201)
def add_file(file: UploadFile, owner: AnOwner, store: TheStore) -> dict[str, Any]:
    """The text of a file, kept for the question it will be sent with."""
    name = _safe_name(file.filename)
    with _on_disk(file, texts.MAX_BYTES) as path:
        size = path.stat().st_size
        try:
            extracted = texts.extract(name, path)
        except RequestError as error:
            raise ApiError(400, str(error), code="unreadable_file", param="file") from None
    with store.write() as db:
        return attachments.add(db, owner.name, {"name": name, "bytes": size, **vars(extracted)})


@router.get("/files/{id}")
def get_file(id: str, owner: AnOwner, store: TheStore) -> dict[str, Any]:
    with store.read() as db:
        row = attachments.get(db, owner.name, id)
        return {**attachments.described(row), "text": row.text}


@router.delete("/files/{id}", status_code=204)
def remove_file(id: str, owner: AnOwner, store: TheStore) -> Response:
    with store.write() as db:
        attachments.remove(db, owner.name, id)
    store.erase()
    return Response(status_code=204)


@router.get("/conversations/{id}/export")
def export_one(
    id: str, owner: AnOwner, store: TheStore, format: Literal["markdown", "json"] = "markdown"
) -> Response:
    with store.read() as db:
        title = owned.check(db, owner.name, id).title
        if format == "markdown":
            text, kind, ending = exporting.as_markdown(db, owner.name, id), "text/markdown", "md"
        else:
            text = _to_json(exporting.as_json(db, owner.name, id))
            kind, ending = "application/json", "json"
    return Response(text, media_type=kind, headers=_as_file(title or "conversation", ending))


@router.get("/export")
def export_all(owner: AnOwner, store: TheStore) -> Response:
    """Everything of the owner's, one conversation in memory at a time."""
    return StreamingResponse(
        _exported(store, owner), media_type="application/json", headers=_as_file("mull", "json")
    )


@router.post("/import")
def import_file(file: UploadFile, owner: AnOwner, store: TheStore) -> dict[str, Any]:
    """mull's own JSON, or what ChatGPT or DeepSeek sent; each conversation whole, or not at all."""
    done: dict[str, Any] = {"conversations": 0, "messages": 0, "skipped": []}
    with _on_disk(file, None) as path:
        records = process.read(
            "conversations", path, seconds=_IMPORT_SECONDS, max_bytes=_IMPORT_BYTES
        )
        try:
            for record in records:
                _take(store, owner, record, done)
        except RequestError as error:
            more = f" ({done['conversations']} conversations were imported)"
            said = str(error) + (more if done["conversations"] else "")
            raise ApiError(400, said, code="unreadable_file", param="file") from None
    return done


def _take(store: Store, owner: Owner, record: dict[str, Any], done: dict[str, Any]) -> None:
    skipped = record.get("skipped")
    if isinstance(record.get("conversation"), dict):
        conversation = {**record["conversation"]}
        conversation["settings"] = _chat_settings(conversation.get("settings"))
        try:
            with store.write() as db:
                done["messages"] += importing.add(db, owner.name, conversation)
            done["conversations"] += 1
        except importing.UnfitError as error:
            title = conversation.get("title")
            skipped = {"title": title[:200] if isinstance(title, str) else None}
            skipped["reason"] = str(error)
    elif "presets" in record or "settings" in record:
        _take_preferences(store, owner, record)
    if skipped and len(done["skipped"]) < _MAX_SKIPPED:
        done["skipped"].append(skipped)


def _chat_settings(raw: Any) -> dict[str, Any]:
    """What of a conversation's settings the page could have set itself: they reach the sampler."""
    try:
        return ChatSettings.model_validate(raw or {}).kept()
    except ValidationError:
        return {}


def _take_preferences(store: Store, owner: Owner, record: dict[str, Any]) -> None:
    """Settings only where there are none yet, presets only under names that are new."""
    with store.write() as db:
        settings = record.get("settings") or {}
        is_small = len(settings) > 0 and len(json.dumps(settings)) <= MAX_SETTINGS_BYTES
        if is_small and not preferences.read_settings(db, owner.name):
            preferences.write_settings(db, owner.name, settings)
        names = {preset["name"] for preset in preferences.list_presets(db, owner.name)}
        for raw in (record.get("presets") or ())[: preferences.MAX_PRESETS - len(names)]:
            try:
                preset = NewPreset.model_validate(raw)
            except ValidationError:
                continue
            if preset.name not in names:
                names.add(preset.name)
                preferences.add_preset(db, owner.name, preset_values(preset))


def _exported(store: Store, owner: Owner) -> Iterator[str]:
    with store.read() as db:
        is_first = True
        for name, value in exporting.everything(db, owner.name):
            if name != "conversation":
                yield f"{'{' if name == 'mull' else ','}\n{json.dumps(name)}:{_to_json(value)}"
                continue
            yield (',\n"conversations":[\n' if is_first else ",\n") + _to_json(value)
            is_first = False
        yield ',\n"conversations":[]}\n' if is_first else "\n]}\n"


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def _on_disk(file: UploadFile, most: int | None) -> Iterator[Path]:
    """The upload as a file of its own that goes with the block; ApiError 413."""
    if most is not None and file.size is not None and file.size > most:
        raise ApiError(
            413, f"the file has {file.size:,} bytes, at most {most:,} are taken", param="file"
        )
    with tempfile.TemporaryDirectory(prefix="mull-") as folder:
        path = Path(folder) / "upload"
        with path.open("wb") as out:
            shutil.copyfileobj(file.file, out)
        yield path


def _safe_name(name: str | None) -> str:
    """A name to show, and to tell the model: no path, no line breaks."""
    shown = re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", name or "").replace("\\", "/")
    return shown.rpartition("/")[2].strip()[-_MAX_NAME:] or "file"


def _as_file(title: str, ending: str) -> dict[str, str]:
    shown = re.sub(r"[^\w .()-]+", "_", title).strip(" .")[:80] or "conversation"
    plain = re.sub(r"[^A-Za-z0-9 .()_-]+", "_", shown)
    return {
        "Content-Disposition": f'attachment; filename="{plain}.{ending}"; '
        f"filename*=UTF-8''{quote(shown)}.{ending}"
    }
