"""The owner of a request: whose conversations, cache and budget it touches."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request


@dataclass(frozen=True)
class Owner:
    """Everything stored or cached belongs to one; without accounts all is "local"'s."""

    name: str = "local"


async def current_owner(request: Request) -> Owner:
    """Who asks; raises ApiError 401 where a key is needed and missing or wrong."""
    return Owner()
