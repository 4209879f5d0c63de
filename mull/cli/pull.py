"""`mull pull`: get a model into the store."""

from __future__ import annotations

from typing import Annotated

import typer

from mull.cli.progress import progress_bar


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A short name, a hub repository as owner/name, or a .gguf file or folder to copy in.",
        ),
    ],
) -> None:
    """Get a model: checks what it needs first, resumes, and keeps the SHA-256 of every file."""
    from mull import weights

    with progress_bar(f"Pulling {name}", in_bytes=True) as progress:
        files = weights.pull(name, progress=progress)
    print(files.name)
