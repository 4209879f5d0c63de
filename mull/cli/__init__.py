"""The `mull` command: one file per verb, each a thin call into a room.

`main` is the entry point. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

# How often a thread of torch's OpenMP looks for work before it sleeps. The runtime's own 300,000
# (milliseconds) starve the team where another program wants a core: a training step of a small
# model takes 20 times as long (measured, docs/log.md). It is read when torch is loaded.
OPENMP_SPINS = {"GOMP_SPINCOUNT": "1000"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` when `arguments` is None) and return its exit code."""
    from mull.cli.app import run

    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in OPENMP_SPINS.items():
            os.environ.setdefault(name, value)
    return run(arguments)
