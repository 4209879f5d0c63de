"""GET /health and /metrics: for programs that watch the server."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

import mull
from mull.serve.api.fields import AnAdmin, TheServing

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether there is a server: needs no key, tells nothing else."""
    return {"status": "ok", "version": mull.__version__}


@router.get("/metrics", response_class=Response)
async def metrics(owner: AnAdmin, parts: TheServing) -> Response:
    """For Prometheus."""
    return Response(parts.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
