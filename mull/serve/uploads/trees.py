"""What foreign exports share: a tree of nodes of which only some are messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

MAX_NODES = 50_000
Kept = dict[str, Any]


def kept_tree(
    mapping: Mapping[str, Any], read: Callable[[str, Any], Kept | None]
) -> tuple[list[Kept], dict[str, str | None]]:
    """Messages, parents before children, and for every node the kept one at or above it.

    read: a node's message in our form, or None where it is none; what it leaves out is bridged.
    A conversation's own order is that of its nodes.
    """
    if len(mapping) > MAX_NODES:
        raise ValueError("too many messages")
    nearest: dict[str, str | None] = {}
    kept: dict[str, Kept] = {}
    for start in mapping:
        # Up to what is known, then down again: no recursion, and a circle ends it.
        way: list[str] = []
        step: Any = start
        while isinstance(step, str) and step in mapping and step not in nearest:
            way.append(step)
            nearest[step] = None
            step = (mapping[step] or {}).get("parent")
        above = nearest.get(step) if isinstance(step, str) else None
        for id in reversed(way):
            message = read(id, mapping[id] or {})
            if message is not None:
                kept[id] = {**message, "id": id, "parent": above}
                above = id
            nearest[id] = above
    return list(kept.values()), nearest


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""
