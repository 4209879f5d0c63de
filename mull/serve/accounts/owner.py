"""The owner of a request: whose conversations, cache and budget it touches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from mull.serve.errors import ApiError

LOCAL = "local"


@dataclass(frozen=True)
class Owner:
    """Everything stored or cached belongs to one; without accounts all is "local"'s.

    key: the id of the key it came with. Owners are the same whichever of their keys was used.
    has_cookie: it came from the page. is_admin: it may get and delete models.
    """

    name: str = LOCAL
    key: str | None = field(default=None, compare=False)
    has_cookie: bool = field(default=False, compare=False)
    is_admin: bool = field(default=True, compare=False)


async def current_owner(request: Request) -> Owner:
    """Who asks; raises ApiError 401 where a key is needed and missing or wrong, 429 where it asks
    too often."""
    if not request.app.state.serving.settings.accounts:
        return Owner()
    # imported here: what decides needs the database, and this module is everybody's
    from mull.serve.accounts.gate import Gate

    gate = request.app.state.gate
    assert isinstance(gate, Gate)
    return await gate.owner_of(request)


def current_admin(owner: Annotated[Owner, Depends(current_owner)]) -> Owner:
    """The same for what concerns everybody on the machine; ApiError 403."""
    if not owner.is_admin:
        raise ApiError(403, "this needs a key made with `mull keys add NAME --admin`")
    return owner
