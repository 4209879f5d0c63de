"""How values lie in the database: ids, times, text that every database takes, JSON, token ids."""

from __future__ import annotations

import array
import datetime
import json
import re
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Dialect, LargeBinary, Text, TypeDecorator

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def new_id() -> str:
    """An id nobody can guess: 96 random bits, safe in addresses."""
    return secrets.token_urlsafe(12)


def now() -> int:
    """Microseconds since the epoch, the form of every time in the database."""
    return time.time_ns() // 1000


def iso(microseconds: int) -> str:
    """ISO 8601 in UTC, as the page and exports have it."""
    seconds, rest = divmod(microseconds, 1_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"


def from_iso(text: str) -> int | None:
    """The other way; None for what is no time, or one no calendar has."""
    try:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        return None
    return since // datetime.timedelta(microseconds=1)


def storable(text: str) -> str:
    """Text without what databases refuse: NUL, and halves of characters (lone surrogates)."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


class StoredText(TypeDecorator[str]):
    """Text, made storable on its way in."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)


class StoredJson(TypeDecorator[Any]):
    """A JSON value as text, alike in every database; None is no value."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return storable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class TokenIds(TypeDecorator[Sequence[int]]):
    """Sampled token ids, four bytes each, little-endian."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Sequence[int] | None, dialect: Dialect) -> bytes | None:
        return None if value is None else _in_order(array.array("I", value)).tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> list[int] | None:
        return None if value is None else _in_order(array.array("I", bytes(value))).tolist()


def _in_order(ids: array.array[int]) -> array.array[int]:
    assert ids.itemsize == 4
    if sys.byteorder == "big":
        ids.byteswap()
    return ids
