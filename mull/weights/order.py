"""One pull in words: what to get, under which name, whom to tell; and what a source brings back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mull.errors import WeightsError
from mull.weights.catalog import Source
from mull.weights.manifest import FileRecord, Manifest, Progress

Say = Callable[[str], None]

_TOKENIZER_FILES = {"tokenizer.model", "merges.txt", "vocab.txt", "chat_template.jinja"}
_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")


@dataclass(frozen=True)
class Order:
    """One pull. Sizes in bytes; `config` is the shape known beforehand, {} where it is not."""

    name: str
    source: Source
    licence: str | None = None
    download_bytes: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    progress: Progress | None = None
    say: Say | None = None

    def tell(self, line: str) -> None:
        if self.say is not None:
            self.say(line)

    def tell_what_it_needs(self, shape: Mapping[str, Any]) -> None:
        """Say before a download whether the model would run here. shape: as in config.json."""
        if shape and self.say is not None:
            from mull.weights.memory import word_before_download  # which imports torch

            self.say(word_before_download(shape, self.name))


@dataclass(frozen=True)
class Repair:
    """A model that is here but damaged: its manifest binds, only `paths` are fetched again."""

    held: Manifest
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Fetched:
    """What a source left in the partial folder, hashes checked."""

    files: tuple[FileRecord, ...]
    revision: str | None
    licence: str | None = None


def is_folder_file(path: str) -> bool:
    """Whether a file of a Hugging Face folder is one mull reads: weights, JSON, tokenizer.

    Only the top level counts, and never a pickle or a program. manifest.json is mull's own name.
    """
    if "/" in path or path == "manifest.json":
        return False
    return path.endswith((".safetensors", ".json")) or path in _TOKENIZER_FILES


def gguf_model(path: str) -> str:
    """The name shared by all parts of a GGUF model that was split into several files."""
    return _PART.sub("", path)


def require_space(where: Path, need: int, name: str) -> None:
    """Refuse before the first byte when the disk cannot take `need` bytes more."""
    free = shutil.disk_usage(where).free
    if need > free:
        raise WeightsError(
            f"{name} needs {in_gb(need)} of disk, {where} has {in_gb(free)} free: "
            "make room, or set MULL_HOME to a folder on a larger disk"
        )


def in_gb(size: int) -> str:
    """A size for people: 98 MB, 3.6 GB, 1.3 TB (powers of ten, as disks and hubs count)."""
    if size >= 1e12:
        return f"{size / 1e12:.1f} TB"
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{max(size, 0) / 1e6:.0f} MB"
