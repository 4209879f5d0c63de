"""`mull pull`: get a model into the store."""

from __future__ import annotations

from typing import Annotated

import typer

from mull.cli.progress import progress_bar
from mull.cli.terminal import note


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name from `mull models`, OWNER/NAME of a hub, or a path to copy in.",
        ),
    ],
) -> None:
    """Get a model into the store.

    Says first whether it fits, goes on where a broken download stopped, and keeps the SHA-256 of
    every file: a file that changes later is refused.
    """
    from mull import weights

    with progress_bar(f"Pulling {name}", in_bytes=True) as progress:
        files = weights.pull(name, progress=progress, say=note)
    print(f"{files.name} is ready: {files.path}")
