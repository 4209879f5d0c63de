"""Prompt lookup: guess a sequence's next tokens from an earlier place that reads as its end does.

No model is asked. What follows the earlier place is compared with what is really said, token by
token, also while nobody uses the guesses: so it is known, for nothing, how far they can be trusted.
"""

from __future__ import annotations

from array import array

# How often a guess is right, by how many tokens before it agree, until its sequence shows it.
# 0: the token after one that differed (a word was replaced), which is tried at the same distance.
_CLASS = (0, 1, 2, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5, 6)
_LAST = len(_CLASS) - 1
_FIRST_RATES = (0.3, 0.5, 0.3, 0.5, 0.6, 0.8, 0.9)
_FIRST_WEIGHT = 3.0
_MEMORY = 0.97
# Earlier places looked at, and tokens compared, when a new place is chosen.
_PLACES, _REACH = 8, 16


class PromptLookup:
    """Follows one sequence; costs about a microsecond a token, never a look at the whole.

    ids: the sequence's own list, which grows. start: where its answer begins.
    """

    def __init__(self, ids: list[int], start: int) -> None:
        self._ids = ids
        self._start = start
        self._read = 0
        # Places (indices of the token to come) after each pair of tokens, linked back in time.
        self._latest: dict[int, int] = {}
        self._earlier = array("i")
        self._source = -1
        self._agreed = 0
        self._hits = [_FIRST_WEIGHT * rate for rate in _FIRST_RATES]
        self._tries = [_FIRST_WEIGHT] * len(_FIRST_RATES)

    def catch_up(self) -> bool:
        """Read what has been appended; whether there is anything to propose now."""
        ids = self._ids
        for place in range(self._read, len(ids)):
            token = ids[place]
            if self._source >= 0:
                self._judge(ids[self._source] == token)
            pair = ids[place - 1] << 32 | token if place else -1
            earlier = self._latest.get(pair, -1)
            self._earlier.append(earlier)
            self._latest[pair] = place + 1
            if earlier > 0 and self._agreed < 2 and place + 1 >= self._start:
                self._source, self._agreed = self._best_place(earlier, place + 1)
        self._read = len(ids)
        return self._source >= 0

    def propose(self, most: int) -> list[int]:
        """What followed at the earlier place, over and over if it runs into the end."""
        found = self._ids[self._source : self._source + most]
        if len(found) < most:
            found = (found * (most // len(found) + 1))[:most]
        return found

    def chances(self, most: int, *, least: float) -> list[float]:
        """How likely each proposed token and all before it are right, as far as `least` or more."""
        chances: list[float] = []
        chance = 1.0
        for agreed in range(self._agreed, self._agreed + most):
            kind = _CLASS[min(agreed, _LAST)]
            chance *= self._hits[kind] / self._tries[kind]
            if chance < least:
                break
            chances.append(chance)
        return chances

    def _judge(self, is_hit: bool) -> None:
        agreed = self._agreed
        kind = _CLASS[min(agreed, _LAST)]
        self._hits[kind] = self._hits[kind] * _MEMORY + is_hit
        self._tries[kind] = self._tries[kind] * _MEMORY + 1.0
        if is_hit:
            self._agreed = agreed + 1
            self._source += 1
        elif agreed:
            self._agreed = 0
            self._source += 1
        else:
            self._source = -1

    def _best_place(self, place: int, end: int) -> tuple[int, int]:
        """The place that agrees longest with the end, the latest of equal ones."""
        ids, best, longest = self._ids, place, 0
        for _ in range(_PLACES):
            agreed = 2
            while (
                agreed < _REACH
                and place > agreed
                and ids[place - 1 - agreed] == ids[end - 1 - agreed]
            ):
                agreed += 1
            if agreed > longest:
                best, longest = place, agreed
                if agreed == _REACH:
                    break
            place = self._earlier[place - 1]
            if place <= 0:
                break
        return best, longest
