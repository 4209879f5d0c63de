"""The `mull` command: one file per verb, each a thin call into a room.

`main` is the entry point. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` when `arguments` is None) and return its exit code."""
    from mull.cli.app import run

    return run(arguments)
