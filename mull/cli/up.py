"""`mull up`: serve the web chat and the API."""

from __future__ import annotations

from typing import Annotated

import typer

from mull.cli.options import (
    DEFAULT_MODEL,
    ContextOption,
    DeviceOption,
    ModelOption,
    PrecisionOption,
    SpeculationOption,
    ThreadsOption,
    no_garbage_collection,
    pull_if_absent,
)


def up(
    model: ModelOption = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="P", help="Port; 0 takes a free one.")] = 8642,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    context: ContextOption = None,
    speculation: SpeculationOption = "auto",
) -> int:
    """Serve the web chat and the API, and print the URL."""
    with no_garbage_collection():
        from mull.serve.server import run
        from mull.serve.settings import Settings

    settings = Settings(
        model=model,
        host=host,
        port=port,
        precision=precision,
        device=device,
        threads=threads,
        context=context,
        speculation=speculation,
    )
    if model == DEFAULT_MODEL:
        pull_if_absent(model)
    return run(settings, opens_browser=not no_browser)
