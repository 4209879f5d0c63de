"""/api/models: what is here and what can be had, and getting, loading, measuring, deleting it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response

from mull import weights
from mull.errors import WeightsError
from mull.serve import sse
from mull.serve.api.fields import AnAdmin, AnOwner, TheServing, page_of
from mull.serve.api.model_facts import ModelFacts
from mull.serve.api.pulls import Pulls
from mull.serve.api.speeds import Speeds, measure
from mull.serve.errors import ApiError
from mull.serve.serving import Serving

router = APIRouter()


@router.get("/models")
async def list_models(request: Request, owner: AnOwner, parts: TheServing) -> dict[str, Any]:
    """Those that are here, the default one first, then those of the catalogue."""
    here = await asyncio.to_thread(parts.pool.names)
    known = [name for name in weights.load_catalog() if name not in here]
    rows = [await _row(request, parts, name, installed=True) for name in here]
    rows += [await _row(request, parts, name, installed=False) for name in known]
    others = [name for name in _pulls(request).states if name not in [*here, *known]]
    rows += [await _row(request, parts, name, installed=False) for name in others]
    return page_of(rows)


@router.post("/models/{name:path}/pull/cancel")
async def cancel_pull(name: str, request: Request, owner: AnAdmin) -> dict[str, Any]:
    return _pulls(request).cancel(name)


@router.get("/models/{name:path}/pull/events")
async def pull_events(name: str, request: Request, owner: AnOwner, parts: TheServing) -> Response:
    """`progress` events while it runs, and one `end`."""
    pulls = _pulls(request)
    pulls.state(name)

    async def body() -> AsyncIterator[bytes]:
        async for state in pulls.follow(name, keep_alive=parts.settings.keep_alive_seconds):
            if state is None:
                yield sse.KEEP_ALIVE
            else:
                yield sse.event(state, name="progress" if state["state"] == "running" else "end")

    return sse.StreamedResponse(body())


@router.post("/models/{name:path}/pull", status_code=202)
async def pull(name: str, request: Request, owner: AnAdmin) -> dict[str, Any]:
    """Begin to get it, or go on; a model that is here has its files checked."""
    return _pulls(request).start(name)


@router.post("/models/{name:path}/load")
async def load(name: str, request: Request, owner: AnAdmin, parts: TheServing) -> dict[str, Any]:
    await parts.pool.load(parts.pool.find(name))
    return await _row(request, parts, parts.pool.find(name), installed=True)


@router.post("/models/{name:path}/unload")
async def unload(name: str, request: Request, owner: AnAdmin, parts: TheServing) -> dict[str, Any]:
    found = parts.pool.find(name)
    await parts.pool.unload(found)
    return await _row(request, parts, found, installed=True)


@router.post("/models/{name:path}/measure")
async def measure_speed(
    name: str, request: Request, owner: AnAdmin, parts: TheServing
) -> dict[str, Any]:
    """Answers a long question of random tokens, and remembers how fast that went."""
    found = parts.pool.find(name)
    if parts.answers.running:
        raise ApiError(409, "answers are running, which would be measured too: wait for them")
    async with parts.pool.lease(found) as llm:
        speed = await measure(llm)
    await asyncio.to_thread(_speeds(request).write, found, speed)
    return await _row(request, parts, found, installed=True)


@router.delete("/models/{name:path}", status_code=204)
async def remove(name: str, request: Request, owner: AnAdmin, parts: TheServing) -> Response:
    """From memory and from the store. What the server was started with from elsewhere stays."""
    found = parts.pool.find(name)
    if parts.pool.source_of(found) != found or found == parts.pool.default:
        raise ApiError(409, f"{found} is what this server was started with: it stays")
    await parts.pool.unload(found)
    try:
        await asyncio.to_thread(weights.remove, found)
    except WeightsError as error:
        raise ApiError(409, str(error)) from None
    await asyncio.to_thread(_speeds(request).forget, found)
    return Response(status_code=204)


async def _row(request: Request, parts: Serving, name: str, *, installed: bool) -> dict[str, Any]:
    facts: ModelFacts = request.app.state.model_facts
    source = parts.pool.source_of(name)
    loaded = parts.pool.loaded.get(name)
    known = await asyncio.to_thread(facts.of, source if installed else name)
    row = {
        "name": name,
        "installed": installed,
        "loaded": loaded is not None,
        "default": name == parts.pool.default,
        **known,
        "speed": _speeds(request).of(name),
        "pull": _pulls(request).states.get(name),
    }
    if loaded is not None:
        llm = loaded.llm
        row |= {"precision": llm.precision, "context": llm.context}
        row["thinks"] = llm.template.thinks
    return row


def _pulls(request: Request) -> Pulls:
    pulls: Pulls = request.app.state.pulls
    return pulls


def _speeds(request: Request) -> Speeds:
    speeds: Speeds = request.app.state.speeds
    return speeds
