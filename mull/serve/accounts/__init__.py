"""Who is asking: keys, owners, limits and budgets.

`routers` are served by the app; `contexts` are entered when it starts (each takes the app).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI

from mull.serve.accounts.gate import opened

routers: list[APIRouter] = []
contexts: list[Callable[[FastAPI], AbstractAsyncContextManager[None]]] = [opened]
