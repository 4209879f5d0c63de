"""Who the page talks for: /api/session, /api/login, /api/logout."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

import mull
from mull.serve.accounts.gate import COOKIE, Gate, address_of
from mull.serve.accounts.keys import LOGIN_DAYS
from mull.serve.accounts.owner import Owner, current_owner
from mull.serve.api.fields import Form, TheServing
from mull.serve.errors import ApiError
from mull.serve.serving import Serving

router = APIRouter()


class Login(Form):
    key: Annotated[str, Field(min_length=1, max_length=200)]


@router.get("/session")
async def get_session(request: Request, parts: TheServing) -> dict[str, Any]:
    """Open to everybody: it is how the page learns that a key is needed."""
    try:
        owner = await current_owner(request)
    except ApiError as error:
        if error.status != 401:
            raise
        return _session(parts, None)
    return _session(parts, owner)


@router.post("/login")
async def log_in(
    request: Request, response: Response, asked: Login, parts: TheServing
) -> dict[str, Any]:
    """Take a key, give a cookie that no script can read and no other site can send."""
    if not parts.settings.accounts:
        return _session(parts, Owner())
    gate: Gate = request.app.state.gate
    owner, value = await gate.log_in(asked.key, address_of(request))
    response.set_cookie(
        COOKIE,
        value,
        max_age=LOGIN_DAYS * 24 * 3600,
        httponly=True,
        samesite="strict",
        secure=_is_encrypted(request),
    )
    return _session(parts, owner)


@router.post("/logout")
async def log_out(request: Request, response: Response, parts: TheServing) -> dict[str, Any]:
    cookie = request.cookies.get(COOKIE)
    if cookie is not None and parts.settings.accounts:
        await request.app.state.gate.log_out(cookie)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return _session(parts, None if parts.settings.accounts else Owner())


def _is_encrypted(request: Request) -> bool:
    """Also where a proxy speaks TLS for us: then the page's own origin says so."""
    origin = request.headers.get("origin", "")
    return request.url.scheme == "https" or origin.startswith("https://")


def _session(parts: Serving, owner: Owner | None) -> dict[str, Any]:
    return {
        "owner": None if owner is None else owner.name,
        "login_required": owner is None,
        "admin": owner is not None and owner.is_admin,
        "version": mull.__version__,
        "default_model": parts.pool.default,
        "accounts": parts.settings.accounts,
    }
