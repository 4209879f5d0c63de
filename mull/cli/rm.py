"""`mull rm`: delete a model from the store."""

from __future__ import annotations

from typing import Annotated

import typer

from mull.cli.terminal import in_gb


def rm(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A name from `mull models`.")],
) -> None:
    """Delete a model from the store.

    A folder or file of your own is never touched.
    """
    from mull import weights

    freed = weights.remove(name)
    print(f"removed {name}: {in_gb(freed)} freed")
