"""`mull up`: serve the web chat and the API."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from mull.cli.options import (
    DEFAULT_MODEL,
    CacheOption,
    ContextOption,
    DeviceOption,
    ModelOption,
    PrecisionOption,
    SpeculationOption,
    ThreadsOption,
    no_garbage_collection,
    pull_if_absent,
)
from mull.errors import RequestError


def up(
    model: ModelOption = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="P", help="Port; 0 takes a free one.")] = 8642,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    context: ContextOption = None,
    cache: CacheOption = "auto",
    speculation: SpeculationOption = "auto",
    accounts: Annotated[
        bool, typer.Option("--accounts", help="Ask for keys: see `mull keys`.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name the server is called by; repeatable."),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where conversations are kept: sqlite or postgresql."),
    ] = None,
    retention: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="Delete conversations silent for so many days."),
    ] = None,
    max_running: Annotated[
        int, typer.Option(metavar="N", help="Answers computed at the same time.")
    ] = 64,
    max_queue: Annotated[
        int, typer.Option(metavar="N", help="Requests that may wait; further ones get 429.")
    ] = 256,
    memory_limit: Annotated[
        float | None, typer.Option(metavar="GB", help="For all models together.")
    ] = None,
    idle_minutes: Annotated[
        float, typer.Option(metavar="N", help="Unload a model nobody used for so long; 0: never.")
    ] = 30.0,
    watts: Annotated[
        float | None, typer.Option(metavar="W", help="What the machine draws, to price answers.")
    ] = None,
    usd_per_kwh: Annotated[
        float | None, typer.Option(metavar="USD", help="What its electricity costs.")
    ] = None,
    strict_reasoning: Annotated[
        bool,
        typer.Option(
            "--strict-reasoning", help="Refuse reasoning_content in requests, as DeepSeek once did."
        ),
    ] = False,
    log: Annotated[
        str, typer.Option(metavar="FORM", help="auto, text, json or off: lines on stderr.")
    ] = "auto",
) -> int:
    """Serve the web chat and the API, and print the URL."""
    with no_garbage_collection():
        from mull.serve.server import run
        from mull.serve.settings import Settings

    settings = Settings(
        model=model,
        host=host,
        port=port,
        hosts=allow_host or (),
        precision=precision,
        device=device,
        threads=threads,
        context=context,
        cache=cache,
        speculation=speculation,
        accounts=accounts,
        strict_reasoning=strict_reasoning,
        max_running=max_running,
        max_queue=max_queue,
        memory_limit=None if memory_limit is None else _bytes(memory_limit),
        idle_minutes=idle_minutes or None,
        retention_days=retention,
        database_url=database,
        watts=watts,
        usd_per_kwh=usd_per_kwh,
        log=log,
    )
    if model == DEFAULT_MODEL:
        pull_if_absent(model)
    return run(settings, opens_browser=not no_browser)


def _bytes(gigabytes: float) -> int:
    if not math.isfinite(gigabytes * 1e9):
        raise RequestError(f"--memory-limit {gigabytes:g}: give it in GB, as 12 or 0.5")
    return round(gigabytes * 1e9)
