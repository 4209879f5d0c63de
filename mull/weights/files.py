"""What a resolved model is on disk: a folder in Hugging Face layout or one GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies. `path` is the folder ("hf") or the .gguf file ("gguf")."""

    name: str
    path: Path
    kind: Literal["hf", "gguf"]
    manifest: dict[str, Any] | None = None
