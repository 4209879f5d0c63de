"""`mull rm`: delete a model from the store."""

from __future__ import annotations

from typing import Annotated

import typer

from mull.cli.terminal import in_gb
from mull.errors import WeightsError


def rm(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A name from `mull models`.")],
) -> None:
    """Delete a model from the store.

    A folder or file of your own is never touched: given one, its packed weights are deleted.
    """
    from mull import weights

    try:
        freed = weights.remove(name)
    except WeightsError:
        freed = weights.remove_packed(name)
        if not freed:
            raise
        print(f"removed the packed weights of {name}: {in_gb(freed)} freed")
        return
    print(f"removed {name}: {in_gb(freed)} freed")
