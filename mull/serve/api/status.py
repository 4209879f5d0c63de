"""GET /api/status: how the server is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from mull.serve.api.fields import AnOwner, TheServing

router = APIRouter()


@router.get("/status")
async def status(owner: AnOwner, parts: TheServing) -> dict[str, Any]:
    """Requests, speeds, memory and models as they are just now."""
    return parts.status.now()
