"""GET /v1/models: what can be asked for."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope

from mull.serve.accounts.owner import Owner, current_owner
from mull.serve.reading import reader_of
from mull.serve.serving import Serving, serving


class _ForPrograms(APIRoute):
    """/models is an address of the page too, and a browser that opens it gets the page."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        accepted = Headers(scope=scope).get("accept", "")
        if scope["path"].startswith("/models") and "text/html" in accepted:
            return Match.NONE, {}
        return super().matches(scope)


router = APIRouter(route_class=_ForPrograms)


@router.get("/models")
def list_models(
    owner: Annotated[Owner, Depends(current_owner)],
    parts: Annotated[Serving, Depends(serving)],
) -> dict[str, Any]:
    """Every model on this machine, the default one first."""
    return {"object": "list", "data": [_model(name, parts) for name in parts.pool.names()]}


@router.get("/models/{name:path}")
def get_model(
    name: str,
    owner: Annotated[Owner, Depends(current_owner)],
    parts: Annotated[Serving, Depends(serving)],
) -> dict[str, Any]:
    """Of one model also what it can do."""
    found = parts.pool.find(name)
    reader = reader_of(parts, found)
    about = {"thinks": reader.template.thinks, "context": reader.context}
    return {**_model(found, parts), **about}


def _model(name: str, parts: Serving) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(parts.started), "owned_by": "mull"}
