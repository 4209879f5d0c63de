"""Who may speak, how often, and for how many tokens; used only where accounts are on."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request

from mull.errors import RequestError, StoreError
from mull.serve.accounts import keys
from mull.serve.accounts.keys import Key
from mull.serve.accounts.limits import Guesses, RateLimits
from mull.serve.accounts.owner import Owner
from mull.serve.errors import ApiError
from mull.serve.settings import Settings
from mull.serve.store import Store
from mull.serve.store.database import Database

if TYPE_CHECKING:
    from mull.serve.answers import RunningAnswer, RunningAnswers

COOKIE = "mull_session"
_MAX_SECRET = 200
_log = logging.getLogger(__name__)


class Gate:
    """Lives in the server's asyncio loop."""

    def __init__(self, store: Store, answers: RunningAnswers) -> None:
        self._store = store
        self._answers = answers
        self._rates = RateLimits()
        self._guesses = Guesses()
        self._known: dict[str, Key] = {}
        # What was spent and is not in the database yet, by key.
        self._booking: Counter[str] = Counter()
        self._bookings: set[asyncio.Task[None]] = set()

    async def owner_of(self, request: Request) -> Owner:
        """Who asks, once more of as many requests a minute as the key has."""
        key, has_cookie = await self.key_in(request)
        if not has_cookie and key.rate_per_minute is not None:
            self._rates.take(key.id, key.rate_per_minute)
        return _owner(key, has_cookie=has_cookie)

    async def key_in(self, request: Request) -> tuple[Key, bool]:
        """A request's key (Authorization, or x-api-key as Anthropic's clients say it), or that of
        its login cookie, and whether it is this; ApiError 401 or 429."""
        secret = secret_in(request.headers)
        if secret is not None:
            return await self.key_of(secret, address_of(request)), False
        cookie = request.cookies.get(COOKIE)
        if cookie is not None and len(cookie) <= _MAX_SECRET:
            login = await asyncio.to_thread(self._find_login, cookie)
            if login is not None and not login.is_expired:
                self._known[login.id] = login
                return login, True
        raise ApiError(
            401,
            "a key is needed: give it as `Authorization: Bearer mull-...`, or log in on the page",
            code="key_needed",
        )

    async def key_of(self, secret: str, address: str) -> Key:
        """The key; ApiError 401 for a wrong or expired one, 429 after too many of those."""
        digest = keys.hash_of(secret)
        self._guesses.check(address, digest)
        found = None
        if secret.startswith(keys.PREFIX) and len(secret) <= _MAX_SECRET:
            found = await asyncio.to_thread(self._find, secret)
        if found is None:
            self._guesses.was_wrong(address)
            raise ApiError(401, "this key is not known here", code="invalid_api_key")
        if found.is_expired:
            raise ApiError(401, "this key has expired: ask for a new one", code="expired_api_key")
        self._guesses.was_right(address, digest)
        self._known[found.id] = found
        return found

    def admit(self, owner: Owner) -> None:
        """Before an answer is begun. ApiError 402 when the key's tokens are spent; 429."""
        key = self._known.get(owner.key or "")
        if key is None:
            return
        if owner.has_cookie and key.rate_per_minute is not None:
            self._rates.take(key.id, key.rate_per_minute)
        spent = key.spent_tokens + self._booking[key.id] + self._running_up(key.id)
        if key.budget_tokens is not None and spent >= key.budget_tokens:
            raise ApiError(
                402,
                f"this key's budget of {key.budget_tokens:,} tokens is spent ({spent:,}): "
                "ask for a new key, or a larger budget",
                code="insufficient_balance",
            )

    def _running_up(self, key: str) -> int:
        """What answers under way have taken by now."""
        mine = (answer for answer in self._answers.running if answer.owner.key == key)
        return sum(len(answer.prompt_ids) + answer.completion_tokens for answer in mine)

    def charge(self, owner: Owner, usage: Mapping[str, int]) -> None:
        """Book the usage of something generated: prompt and completion tokens."""
        tokens = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
        if owner.key is None or not tokens:
            return
        self._booking[owner.key] += tokens
        task = asyncio.get_running_loop().create_task(self._book(owner.key, tokens))
        self._bookings.add(task)
        task.add_done_callback(self._bookings.discard)

    def charge_answer(self, answer: RunningAnswer) -> None:
        """The same for an answer that has ended, whatever its form and however it ended."""
        outputs = list(answer.outputs.values())
        prompt = outputs[0].usage.prompt_tokens if outputs else 0
        told = sum(output.usage.completion_tokens for output in outputs)
        completion = max(told, answer.completion_tokens)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        self.charge(answer.owner, usage)

    async def log_in(self, secret: str, address: str) -> tuple[Owner, str]:
        """The owner, and the cookie's value."""
        key = await self.key_of(secret.strip(), address)
        return _owner(key, has_cookie=True), await asyncio.to_thread(self._log_in, key)

    async def log_out(self, cookie: str) -> None:
        await asyncio.to_thread(self._log_out, cookie)

    async def close(self) -> None:
        if self._bookings:
            await asyncio.wait(self._bookings)

    async def _book(self, key: str, tokens: int) -> None:
        for pause in (0.1, 1.0, 5.0, None):
            try:
                self._known[key] = await asyncio.to_thread(self._spend, key, tokens)
                break
            except StoreError as error:
                if pause is None:
                    _log.error("%d tokens of key %s could not be booked: %s", tokens, key, error)
                    return  # they stay booked in memory
                await asyncio.sleep(pause)
            except LookupError:
                break  # the key was removed meanwhile
        self._booking[key] -= tokens

    def _find(self, secret: str) -> Key | None:
        with self._store.read() as db:
            return keys.find(db, secret)

    def _find_login(self, cookie: str) -> Key | None:
        with self._store.read() as db:
            return keys.find_login(db, cookie)

    def _log_in(self, key: Key) -> str:
        with self._store.write() as db:
            return keys.log_in(db, key)

    def _log_out(self, cookie: str) -> None:
        with self._store.write() as db:
            keys.log_out(db, cookie)

    def _spend(self, key: str, tokens: int) -> Key:
        with self._store.write() as db:
            keys.spend(db, key, tokens)
            return keys.get(db, key)


def secret_in(headers: Mapping[str, str]) -> str | None:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return headers.get("x-api-key") or None


def address_of(request: Request) -> str:
    return request.client.host if request.client is not None else "nowhere"


def _owner(key: Key, *, has_cookie: bool) -> Owner:
    return Owner(key.owner, key=key.id, has_cookie=has_cookie, is_admin=key.is_admin)


@asynccontextmanager
async def opened(app: FastAPI) -> AsyncIterator[None]:
    """The gate, as long as the app runs; what answers take is booked where accounts are on."""
    parts = app.state.serving
    gate = Gate(app.state.store, parts.answers)
    app.state.gate = gate
    if parts.settings.accounts:
        parts.answers.on_start.append(gate.admit)
        parts.answers.on_end.append(gate.charge_answer)
    try:
        yield
    finally:
        await gate.close()


def check_ready(settings: Settings) -> None:
    """Before a server listens: the store can be used, and where keys are needed there is one.
    Raises StoreError or RequestError, one line each."""
    with Database(settings.database_url) as database, database.read() as db:
        if settings.accounts and not keys.any_exist(db):
            raise RequestError(
                "accounts are on, but nobody has a key: make one with `mull keys add NAME --admin`"
            )
