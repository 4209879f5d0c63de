"""API keys and logins in the database. What is kept of a secret is its SHA-256.

A key is 256 random bits, so nobody can find one by its hash: a slow hash would add nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from mull.errors import RequestError
from mull.serve.store.tables import keys, logins
from mull.serve.store.values import new_id, now

PREFIX = "mull-"
LOGIN_DAYS = 30
_DAY = 24 * 3600 * 1_000_000
_ENDING = 4


@dataclass(frozen=True)
class Key:
    """What is known of a key; times in microseconds since the epoch."""

    id: str
    owner: str
    ending: str
    is_admin: bool
    rate_per_minute: int | None
    budget_tokens: int | None
    spent_tokens: int
    created: int
    expires: int | None
    last_used: int | None

    @property
    def is_expired(self) -> bool:
        return self.expires is not None and self.expires <= now()


def add(
    db: Connection,
    owner: str,
    *,
    budget_tokens: int | None = None,
    rate_per_minute: int | None = None,
    days: float | None = None,
    is_admin: bool = False,
) -> str:
    """Make a key and return it, this once. An owner may have several."""
    secret = PREFIX + secrets.token_urlsafe(32)
    moment = now()
    db.execute(
        insert(keys).values(
            id=new_id(),
            owner=owner,
            hash=hash_of(secret),
            ending=secret[-_ENDING:],
            is_admin=is_admin,
            rate_per_minute=rate_per_minute,
            budget_tokens=budget_tokens,
            spent_tokens=0,
            created=moment,
            expires=None if days is None else moment + round(days * _DAY),
        )
    )
    return secret


def listed(db: Connection) -> list[Key]:
    return [_key(row) for row in db.execute(select(keys).order_by(keys.c.owner, keys.c.created))]


def any_exist(db: Connection) -> bool:
    return db.scalar(select(func.count()).select_from(keys)) != 0


def remove(db: Connection, name_or_id: str) -> list[Key]:
    """One key by its id, or all of an owner; their logins end. Raises RequestError for none."""
    gone = [key for key in listed(db) if name_or_id in (key.id, key.owner)]
    if not gone:
        raise RequestError(f"no key {name_or_id!r}: `mull keys list` shows them")
    db.execute(delete(keys).where(keys.c.id.in_([key.id for key in gone])))
    return gone


def get(db: Connection, id: str) -> Key:
    """LookupError for one that was removed."""
    row = db.execute(select(keys).where(keys.c.id == id)).first()
    if row is None:
        raise LookupError(id)
    return _key(row)


def find(db: Connection, secret: str) -> Key | None:
    """The key that this is, expired or not."""
    digest = hash_of(secret)
    row = db.execute(select(keys).where(keys.c.hash == digest)).first()
    if row is None or not hmac.compare_digest(row.hash, digest):
        return None
    return _key(row)


def log_in(db: Connection, key: Key) -> str:
    """A new value for the login cookie."""
    secret = secrets.token_urlsafe(32)
    db.execute(delete(logins).where(logins.c.expires <= now()))
    expires = now() + LOGIN_DAYS * _DAY
    db.execute(insert(logins).values(hash=hash_of(secret), key=key.id, expires=expires))
    return secret


def find_login(db: Connection, secret: str) -> Key | None:
    """The key whose login this cookie is."""
    digest = hash_of(secret)
    query = select(keys, logins.c.hash.label("login")).join(logins, logins.c.key == keys.c.id)
    row = db.execute(query.where(logins.c.hash == digest, logins.c.expires > now())).first()
    if row is None or not hmac.compare_digest(row.login, digest):
        return None
    return _key(row)


def log_out(db: Connection, secret: str) -> None:
    db.execute(delete(logins).where(logins.c.hash == hash_of(secret)))


def spend(db: Connection, id: str, tokens: int) -> None:
    """Book what an answer took."""
    spent = {"spent_tokens": keys.c.spent_tokens + tokens, "last_used": now()}
    db.execute(update(keys).where(keys.c.id == id).values(spent))


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _key(row: Row[tuple[object, ...]]) -> Key:
    values = row._mapping
    return Key(**{name: values[name] for name in Key.__dataclass_fields__})
