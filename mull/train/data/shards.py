"""Token ids of many documents in one file that is mapped, never read as a whole.

One file: a header of 4,096 bytes (JSON), the ids, and the ends of the documents (uint64). The
highest bit of an id says whether it is learnt. A shard is named after what it was made from, and
used again only when that is unchanged.

N documents
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from mull.errors import TrainError
from mull.train.batch import Example

_HEADER_BYTES = 4096
_FORMAT = "mull tokens 1"
# Ids are handed to the file about this many at a time.
_WRITE_TOKENS = 1 << 16


class Shard:
    """Documents of token ids in a file. ends_N: int64, where each document ends; counts: what its
    maker counted (documents left out, and why); is_complete: the source had no more."""

    def __init__(self, path: Path) -> None:
        header = _read_header(path)
        self.path = path
        self.key: str = header["key"]
        self.counts: dict[str, int] = header["counts"]
        self.is_complete: bool = header["is_complete"]
        self._learn_bit = 8 * np.dtype(header["dtype"]).itemsize - 1
        tokens, documents = int(header["tokens"]), int(header["documents"])
        kind = np.dtype(header["dtype"]).newbyteorder("<")
        expected = _HEADER_BYTES + tokens * kind.itemsize + documents * 8
        if path.stat().st_size != expected:
            raise TrainError(f"{path}: is cut short; remove it, it is made again")
        self._ids = (
            np.memmap(path, kind, "r", offset=_HEADER_BYTES, shape=(tokens,))
            if tokens
            else np.zeros(0, kind)
        )
        after = _HEADER_BYTES + tokens * kind.itemsize
        with path.open("rb") as file:
            file.seek(after)
            self.ends_N = np.frombuffer(file.read(documents * 8), "<u8").astype(np.int64)

    @property
    def tokens(self) -> int:
        return len(self._ids)

    @property
    def documents(self) -> int:
        return len(self.ends_N)

    def read(self, start: int, end: int, *, all_learnt: bool) -> Example:
        """The ids of [start, end) with what is learnt of them; the first never is."""
        packed = np.asarray(self._ids[start:end])
        learnt = packed >> self._learn_bit != 0
        if all_learnt:
            learnt[:] = True
        learnt[:1] = False
        mask = packed.dtype.type((1 << self._learn_bit) - 1)
        return Example((packed & mask).tolist(), learnt.tolist())


def make_shard(
    folder: Path,
    key: str,
    documents: Iterable[Example],
    vocabulary: int,
    *,
    counts: Mapping[str, int],
    most_tokens: int | None = None,
) -> Shard:
    """The shard of that key in `folder`: the one that is there, or a new one of these documents.

    counts: read when the documents are through, so their maker may count along. most_tokens: stop
    before the document that would exceed it. Raises TrainError when the disk refuses; nothing half
    written is left behind.
    """
    path = folder / f"{key}.tokens"
    if (kept := find_shard(folder, key)) is not None:
        return kept
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{key}.", delete=False) as file:
            temporary = Path(file.name)
            header = _write(file, documents, vocabulary, most_tokens)
            header |= {"format": _FORMAT, "key": key, "counts": dict(counts)}
            text = json.dumps(header).encode()
            if len(text) > _HEADER_BYTES:
                raise TrainError(f"{path}: counts too many things for its header")
            file.seek(0)
            file.write(text.ljust(_HEADER_BYTES))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise TrainError(f"{path}: could not be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return Shard(path)


def find_shard(folder: Path, key: str) -> Shard | None:
    """The shard of that key, None where there is none or it is damaged."""
    path = folder / f"{key}.tokens"
    if not path.is_file():
        return None
    try:
        shard = Shard(path)
    except TrainError:
        return None  # it is only a copy of what can be made again
    return shard if shard.key == key else None


def _write(
    file: IO[bytes],
    documents: Iterable[Example],
    vocabulary: int,
    most_tokens: int | None,
) -> dict[str, Any]:
    dtype = "uint16" if vocabulary <= 1 << 15 else "uint32"
    kind = np.dtype(dtype).newbyteorder("<")
    learn_bit = 1 << (8 * kind.itemsize - 1)
    file.write(b" " * _HEADER_BYTES)
    ends: list[int] = []
    pending: list[int] = []
    tokens = 0
    is_complete = True
    for document in documents:
        if most_tokens is not None and tokens + len(document.ids) > most_tokens:
            is_complete = False
            break
        tokens += len(document.ids)
        ends.append(tokens)
        pending += [
            token | learn_bit if learnt else token
            for token, learnt in zip(document.ids, document.learn, strict=True)
        ]
        if len(pending) >= _WRITE_TOKENS:
            file.write(np.array(pending, kind).tobytes())
            pending.clear()
    file.write(np.array(pending, kind).tobytes())
    file.write(np.array(ends, "<u8").tobytes())
    return {
        "dtype": dtype,
        "tokens": tokens,
        "documents": len(ends),
        "is_complete": is_complete,
    }


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER_BYTES))
    except OSError as error:
        raise TrainError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise TrainError(f"{path}: is no shard of tokens; remove it, it is made again")
    return header
