"""How often: requests of a key per minute, and wrong keys from one address. In memory only."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mull.serve.errors import ApiError

_MOST_REMEMBERED = 10_000
_FREE_GUESSES = 5
_LONGEST_WAIT = 900.0


@dataclass
class _Bucket:
    tokens: float
    filled: float


class RateLimits:
    """A bucket for each key that fills evenly: a minute's requests may come at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, key: str, per_minute: int) -> None:
        """One request; ApiError 429 that says when the next is welcome."""
        moment = self._clock()
        bucket = self._buckets.setdefault(key, _Bucket(per_minute, moment))
        self._buckets.move_to_end(key)
        _forget_oldest(self._buckets)
        each = per_minute / 60
        bucket.tokens = min(per_minute, bucket.tokens + (moment - bucket.filled) * each)
        bucket.filled = moment
        if bucket.tokens < 1:
            wait = math.ceil((1 - bucket.tokens) / each)
            raise ApiError(
                429,
                f"this key may ask {per_minute} times a minute: try again in {wait} s",
                code="rate_limit_exceeded",
                retry_after=wait,
            )
        bucket.tokens -= 1


@dataclass
class _Guesser:
    wrong: int = 0
    until: float = 0.0


class Guesses:
    """Wrong keys by address: after a few, each doubles the time in which that address is not
    heard. A key that was right there before stays welcome."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guessers: OrderedDict[str, _Guesser] = OrderedDict()
        self._welcome: OrderedDict[tuple[str, str], None] = OrderedDict()

    def check(self, address: str, secret_hash: str) -> None:
        """Before a key is looked at; ApiError 429."""
        guesser = self._guessers.get(address)
        if guesser is None or (address, secret_hash) in self._welcome:
            return
        wait = math.ceil(guesser.until - self._clock())
        if wait > 0:
            raise ApiError(
                429,
                f"too many wrong keys from {address}: try again in {wait} s",
                code="too_many_wrong_keys",
                retry_after=wait,
            )

    def was_wrong(self, address: str) -> None:
        guesser = self._guessers.setdefault(address, _Guesser())
        self._guessers.move_to_end(address)
        _forget_oldest(self._guessers)
        guesser.wrong += 1
        over = guesser.wrong - _FREE_GUESSES
        if over >= 0:
            guesser.until = self._clock() + min(_LONGEST_WAIT, 2.0 ** min(over, 30))

    def was_right(self, address: str, secret_hash: str) -> None:
        self._welcome[(address, secret_hash)] = None
        self._welcome.move_to_end((address, secret_hash))
        _forget_oldest(self._welcome)


def _forget_oldest(remembered: OrderedDict[Any, Any]) -> None:
    while len(remembered) > _MOST_REMEMBERED:
        remembered.popitem(last=False)
