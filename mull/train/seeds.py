"""Seeds: pure functions of the run's seed and of what they are for."""

from __future__ import annotations

import hashlib


def seed_of(*parts: object) -> int:
    """From 0 to 2**63 - 1; other parts give an unrelated seed."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def narrow_seed_of(*parts: object) -> int:
    """From 0 to 2**31 - 1, for tasks: some number their items from it, so seeds must lie apart."""
    return seed_of(*parts) >> 32
