"""Conversations out of an export: mull's own, ChatGPT's, DeepSeek's; run in the worker's process.

Each becomes a record in mull's own form, whatever it was: {"conversation": {...}}, {"skipped":
{...}} for one that cannot be had, and of mull's own {"presets": [...]} and {"settings": {...}}.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mull.errors import RequestError
from mull.serve.uploads import chatgpt, deepseek

MAX_JSON_BYTES = 96 * 2**20
MAX_MEMBERS = 100_000
_PIECE = 1 << 20


def conversations(path: Path) -> Iterator[dict[str, Any]]:
    """Raises RequestError for what is no such export."""
    is_known = False
    for name, raw in _documents(path):
        try:
            document = json.loads(raw)
        except ValueError as error:
            raise RequestError(f"{name} is not JSON ({error})"[:200]) from None
        del raw
        found = _of_document(document)
        if found is not None:
            is_known = True
            yield from found
    if not is_known:
        raise RequestError(
            "this is no export that mull knows: give mull's own JSON, or the conversations.json "
            "or zip that ChatGPT or DeepSeek sent"
        )


def _of_document(document: Any) -> Iterator[dict[str, Any]] | None:
    if isinstance(document, dict) and isinstance(document.get("conversations"), list):
        return _own(document)
    if isinstance(document, dict) and isinstance(document.get("messages"), list):
        return _own({"conversations": [document]})
    listed = document if isinstance(document, list) else [document]
    first = next((each for each in listed if isinstance(each, dict)), None)
    if first is None or not isinstance(first.get("mapping"), dict):
        return iter(()) if document == [] else None
    convert = deepseek.convert if deepseek.is_one(first) else chatgpt.convert
    return _converted(listed, convert)


def _own(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for conversation in document["conversations"]:
        if isinstance(conversation, dict):
            yield {"conversation": conversation}
        else:
            yield {"skipped": {"title": None, "reason": "it is no conversation"}}
    for name, kind in (("presets", list), ("settings", dict)):
        if isinstance(document.get(name), kind):
            yield {name: document[name]}


def _converted(listed: list[Any], convert: Any) -> Iterator[dict[str, Any]]:
    for raw in listed:
        title = raw.get("title") if isinstance(raw, dict) else None
        shown = title[:200] if isinstance(title, str) else None
        try:
            conversation = convert(raw)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            yield {"skipped": {"title": shown, "reason": f"damaged ({type(error).__name__})"}}
            continue
        if conversation["messages"]:
            yield {"conversation": conversation}
        else:
            yield {"skipped": {"title": shown, "reason": "it has no messages"}}


def _documents(path: Path) -> Iterator[tuple[str, bytes]]:
    """The JSON files of a zip, or the file itself, none of them larger than can be read."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if not is_zip:
            yield "the file", _bounded(file, MAX_JSON_BYTES)
            return
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if len(members) > MAX_MEMBERS:
                    raise RequestError(f"the zip holds {len(members):,} files: too many")
                left = MAX_JSON_BYTES
                for name, member in _wanted(members):
                    with archive.open(member) as inside:
                        raw = _bounded(inside, left)  # type: ignore[arg-type]
                    left -= len(raw)
                    yield name[:100], raw
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            raise RequestError(f"the zip is damaged or locked ({type(error).__name__})") from None


def _wanted(members: list[zipfile.ZipInfo]) -> list[tuple[str, zipfile.ZipInfo]]:
    """The conversations of ChatGPT's and DeepSeek's zips, which hold other JSON too; else all JSON:
    somebody has zipped mull's own."""
    named = [(member.filename.rpartition("/")[2], member) for member in members]
    found = [(name, member) for name, member in named if name.endswith(".json")]
    return [each for each in found if each[0].startswith("conversations")] or found


def _bounded(file: BinaryIO, most: int) -> bytes:
    """All of it, however much it says it is; RequestError when that is more than `most`."""
    pieces, size = [], 0
    while piece := file.read(_PIECE):
        size += len(piece)
        if size > most:
            raise RequestError(
                f"the conversations take more than {MAX_JSON_BYTES // 2**20} MB unpacked: "
                "give them in parts"
            )
        pieces.append(piece)
    return b"".join(pieces)
