"""Conversations and what belongs to them, kept in a database.

`routers` are served by the app; `contexts` are entered when it starts (each takes the app).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI

from mull.serve.store.store import Store, opened, the_store

routers: list[APIRouter] = []
contexts: list[Callable[[FastAPI], AbstractAsyncContextManager[None]]] = [opened]

__all__ = ["Store", "contexts", "routers", "the_store"]
