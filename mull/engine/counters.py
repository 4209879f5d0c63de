"""What an engine tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """What the engine has done since it was made, and how full it is now.

    prefill_tokens were computed; cached_tokens were found in the cache instead. drafted_tokens were
    guessed and checked; decode_tokens holds those of them that were accepted.
    """

    steps: int
    prefill_tokens: int
    decode_tokens: int
    cached_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    preemptions: int
    evictions: int
    running: int
    waiting: int
    free_blocks: int
    used_blocks: int
