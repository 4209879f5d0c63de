"""An append-only file of JSON lines that survives kills and full disks, and can be cut back."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mull.errors import TrainError
from mull.train.state import reason

_log = logging.getLogger(__name__)


class JsonLines:
    """One record is one line and one write, so a kill loses at most the record being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    @property
    def size(self) -> int:
        """Bytes written so far: the mark to go back to."""
        return self._file.seek(0, os.SEEK_END)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record. Numbers that JSON cannot hold (NaN, infinities) become null.

        Raises TrainError when the disk refuses; the file then ends with the record before.
        """
        line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
        before = self.size
        try:
            if self._file.write(line) != len(line):
                raise OSError("No space left on device")
        except OSError as error:
            self._file.truncate(before)
            raise TrainError(
                f"{self.path}: could not be written ({reason(error)}); free some space and resume"
            ) from error

    def rewind(self, size: int) -> list[dict[str, Any]]:
        """Cut the file back to `size` bytes; returns the records cut off."""
        if self.size < size:
            _log.warning("%s is shorter than the checkpoint says: records are missing", self.path)
            return []
        with self.path.open("rb") as file:
            file.seek(size)
            gone = [record for line in file if (record := _record(line)) is not None]
        self._file.truncate(size)
        return gone

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a file; a broken line (a kill wrote half of it) is passed over."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if (record := _record(line)) is not None:
                yield record


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "item"):  # tensors and NumPy scalars of one element
        value = value.item()
        if isinstance(value, bool | int):
            return value
    if isinstance(value, Path):
        return str(value)
    number = float(value)
    return number if math.isfinite(number) else None
