"""A fixed text that every machine has: the topics of Python's own documentation (`help()`)."""

from __future__ import annotations

import hashlib
import platform
from pydoc_data.topics import topics
from typing import Any

from mull.text import Tokenizer


def standard_text() -> tuple[str, dict[str, Any]]:
    """The topics in the order of their names, and what identifies them: they differ by version."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return text, {
        "text": "pydoc_data.topics, sorted by name",
        "python": platform.python_version(),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "characters": len(text),
    }


def windows(tokenizer: Tokenizer, text: str, count: int, tokens: int) -> list[list[int]]:
    """The first `count` windows of `tokens` tokens each, side by side."""
    ids = tokenizer.encode(text[: count * tokens * 12])
    assert len(ids) >= count * tokens, f"the text has only {len(ids)} tokens"
    return [ids[i * tokens : (i + 1) * tokens] for i in range(count)]
