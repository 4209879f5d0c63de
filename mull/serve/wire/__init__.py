"""The wire formats of others: OpenAI's, DeepSeek's, Anthropic's.

`routers` are served by the app; `contexts` are entered when it starts (each takes the app).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI

from mull.serve.wire.chat import router as chat
from mull.serve.wire.completions import router as completions
from mull.serve.wire.messages import router as messages
from mull.serve.wire.models import router as models
from mull.serve.wire.responses import router as responses

routers: list[APIRouter] = []
contexts: list[Callable[[FastAPI], AbstractAsyncContextManager[None]]] = []

for _router in (chat, completions, models):
    # DeepSeek serves its API with /v1, without, and under /beta; clients are set to any of them.
    for _prefix in ("/v1", "", "/beta"):
        _served = APIRouter(prefix=_prefix, include_in_schema=_prefix == "/v1")
        _served.include_router(_router)
        routers.append(_served)
for _router in (messages, responses):
    _served = APIRouter(prefix="/v1")
    _served.include_router(_router)
    routers.append(_served)
