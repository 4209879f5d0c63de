"""The page's own routes, all under /api.

`routers` are served by the app; `contexts` are entered when it starts (each takes the app).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import APIRouter, FastAPI

from mull.serve.api import (
    answers,
    asking,
    conversations,
    counting,
    models,
    preferences,
    runs,
    session,
    status,
    uploading,
)
from mull.serve.api.model_facts import ModelFacts
from mull.serve.api.pulls import Pulls
from mull.serve.api.speeds import Speeds

_ROOM = (
    session,
    preferences,
    conversations,
    asking,
    answers,
    counting,
    uploading,
    models,
    runs,
    status,
)


@asynccontextmanager
async def _models_known(app: FastAPI) -> AsyncIterator[None]:
    """What the routes about models remember between requests."""
    app.state.model_facts = ModelFacts()
    app.state.speeds = await asyncio.to_thread(Speeds)
    app.state.pulls = Pulls()
    try:
        yield
    finally:
        await app.state.pulls.close()


routers: list[APIRouter] = []
contexts: list[Callable[[FastAPI], AbstractAsyncContextManager[None]]] = [_models_known]

for _part in _ROOM:
    _served = APIRouter(prefix="/api")
    _served.include_router(_part.router)
    routers.append(_served)
