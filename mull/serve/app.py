"""The application: guards around routers, and what lives as long as the server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from fastapi import FastAPI

import mull
from mull.serve import accounts, api, errors, static, store, watching, wire
from mull.serve.answers import RunningAnswers
from mull.serve.guard import Guards
from mull.serve.logs import RequestLog, note_answer, note_loose_failure
from mull.serve.metrics import Metrics
from mull.serve.models import ModelPool
from mull.serve.serving import Serving
from mull.serve.settings import Settings
from mull.serve.status import Status

ROOMS = (wire, store, accounts, api)  # accounts lie in the store


def create_app(settings: Settings) -> FastAPI:
    """Everything that can be asked of the server. Raises WeightsError for an unknown model."""
    app = FastAPI(
        title="mull",
        version=mull.__version__,
        lifespan=_lifespan,
        docs_url=None,  # FastAPI's pages would load scripts from elsewhere
        redoc_url=None,
        openapi_url="/docs/openapi.json",
    )
    pool = ModelPool(settings)
    answers, metrics = RunningAnswers(pool, settings), Metrics(pool)
    answers.on_end += [metrics.count_answer, note_answer]
    status = Status(pool, answers, metrics, settings)
    app.state.serving = Serving(settings, pool, answers, metrics, status)
    errors.install(app)
    for room in ROOMS:
        for router in room.routers:
            app.include_router(router)

    app.include_router(watching.router)
    static.install(app, settings.page)
    app.add_middleware(Guards, settings=settings)
    app.add_middleware(RequestLog, metrics=metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    parts: Serving = app.state.serving
    # asyncio's own words would quote the error of a task, which may quote what somebody wrote.
    asyncio.get_running_loop().set_exception_handler(note_loose_failure)
    async with AsyncExitStack() as stack:
        for room in ROOMS:
            for context in room.contexts:
                await stack.enter_async_context(context(app))
        work = (parts.pool.sweep(), parts.status.watch(), _forget(parts))
        chores = [asyncio.create_task(chore) for chore in work]
        try:
            yield
        finally:
            await parts.answers.close(parts.settings.shutdown_seconds)
            for chore in chores:
                chore.cancel()
                with suppress(asyncio.CancelledError):
                    await chore
            await parts.pool.close()


async def _forget(parts: Serving) -> None:
    while True:
        await asyncio.sleep(5)
        parts.answers.forget_old()
