"""The header of a GGUF file: metadata and the tensor table, every number checked before it is used.

The reader is our own because the `gguf` package's one believes every count, length and offset it
reads (a hostile file can make it allocate or loop without bound) and takes seconds for a
vocabulary of 128,000 entries. Here each is held against the bytes that are left in the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mull.errors import WeightsError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_NAME_BYTES = 65_535
MAX_DIMENSIONS = 4
MAX_NESTING = 4
# A 128k vocabulary has about 0.4 M values in its metadata; 16 M leaves room for forty of them.
MAX_METADATA_VALUES = 1 << 24
MAX_METADATA_BYTES = 1 << 29
MAX_ALIGNMENT = 1 << 20

_STRING, _ARRAY, _BOOL = 8, 9, 7
# GGUF value type -> struct code of the little-endian value; numpy knows the same numbers.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the tensor table. `shape` is in torch's order (rows first, contiguous last)."""

    name: str
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    offset: int  # bytes from the start of the file
    nbytes: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


class HeaderReader:
    """A cursor over the mapped file that never moves past the end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path = data, path
        self.size = len(data)
        self.at = 0
        self.values_left = MAX_METADATA_VALUES

    def damaged(self, what: str) -> WeightsError:
        return WeightsError(
            f"{self.path}: damaged GGUF header at byte {self.at:,}: {what}; fetch the file again"
        )

    def take(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they began."""
        begin = self.at
        if count > self.size - begin:
            raise self.damaged(f"{what} needs {count:,} bytes, {self.size - begin:,} are left")
        self.at = begin + count
        return begin

    def scalar(self, code: str, what: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize(code), what))[0]

    def string(self, what: str, limit: int = MAX_METADATA_BYTES) -> str:
        length = self.scalar("Q", what)
        if length > limit:
            raise self.damaged(f"{what} claims {length:,} bytes")
        begin = self.take(length, what)
        try:
            return str(self.data[begin : self.at], "utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is not UTF-8") from None

    def read_preamble(self) -> None:
        if self.size < 24 or self.data[:4] != MAGIC:
            raise WeightsError(f"{self.path}: not a GGUF file (it does not begin with 'GGUF')")
        self.at = 4
        version = self.scalar("I", "version")
        if version not in VERSIONS:
            if version & 0xFFFF == 0:
                raise WeightsError(f"{self.path}: a big-endian GGUF; mull reads little-endian ones")
            raise WeightsError(
                f"{self.path}: GGUF version {version} is not one of {VERSIONS}; convert it again"
            )
        self.tensor_count = self.scalar("Q", "tensor count")
        self.metadata_count = self.scalar("Q", "metadata count")

    def read_metadata(self) -> dict[str, Any]:
        # A pair is at least a key length, a type and one byte: more cannot fit the file.
        self.bounded(self.metadata_count, 13, "metadata count")
        metadata: dict[str, Any] = {}
        for _ in range(self.metadata_count):
            key = self.string("metadata key", MAX_NAME_BYTES)
            if key in metadata:
                raise self.damaged(f"metadata key {key[:80]!r} comes twice")
            metadata[key] = self.value(self.scalar("I", "value type"), key, depth=0)
            if self.at > MAX_METADATA_BYTES:
                raise self.damaged(f"metadata is larger than {MAX_METADATA_BYTES:,} bytes")
        return metadata

    def bounded(self, count: int, smallest: int, what: str) -> None:
        """Refuse a count whose items, each of at least `smallest` bytes, exceed what is left."""
        if count > (self.size - self.at) // smallest:
            raise self.damaged(f"{what} is {count:,}, more than the file can hold")

    def value(self, kind: int, key: str, depth: int) -> Any:
        what = f"value of {key[:80]!r}"
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(key, what, depth)
        code = _SCALARS.get(kind)
        if code is None:
            raise self.damaged(f"{what} has unknown type {kind}")
        number = self.scalar(code, what)
        return bool(number) if kind == _BOOL else number

    def array(self, key: str, what: str, depth: int) -> list[Any]:
        kind = self.scalar("I", what)
        count = self.scalar("Q", what)
        if depth >= MAX_NESTING:
            raise self.damaged(f"{what} nests arrays deeper than {MAX_NESTING}")
        code = _SCALARS.get(kind)
        smallest = {_STRING: 8, _ARRAY: 12}.get(kind, struct.calcsize(code or "B"))
        self.bounded(count, smallest, f"length of the {what}")
        self.values_left -= count
        if self.values_left < 0:
            raise self.damaged(f"metadata has more than {MAX_METADATA_VALUES:,} values")
        if kind == _STRING:
            return self.strings(count, what)
        if code is None or kind == _BOOL:
            return [self.value(kind, key, depth + 1) for _ in range(count)]
        begin = self.take(count * smallest, what)
        return np.frombuffer(self.data, np.dtype("<" + code), count, begin).tolist()

    def strings(self, count: int, what: str) -> list[str]:
        """The hot loop of opening a file: a vocabulary and its merges, 250,000 strings and more."""
        data, at, size = self.data, self.at, self.size
        unpack = struct.Struct("<Q").unpack_from
        found: list[str] = []
        for _ in range(count):
            end = at + 8
            if end <= size:
                end += unpack(data, at)[0]
            if end > size:
                self.at = at
                raise self.damaged(f"{what} runs past the end of the file")
            try:
                found.append(str(data[at + 8 : end], "utf-8"))
            except UnicodeDecodeError:
                self.at = at
                raise self.damaged(f"{what} is not UTF-8") from None
            at = end
        self.at = at
        return found

    def read_tensor_table(self, metadata: dict[str, Any]) -> dict[str, GgufTensor]:
        # An entry is at least name length, dimension count, one dimension, type and offset.
        self.bounded(self.tensor_count, 33, "tensor count")
        entries = [self.tensor_entry() for _ in range(self.tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or not 8 <= alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self.damaged(f"general.alignment {alignment!r:.40} is not a power of two from 8")
        data_start = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for entry in entries:
            tensor = self.checked(entry, data_start, alignment)
            if tensor.name in tensors:
                raise self.damaged(f"tensor {tensor.name} comes twice")
            tensors[tensor.name] = tensor
        self.refuse_overlap(tensors)
        return tensors

    def tensor_entry(self) -> GgufTensor:
        name = self.string("tensor name", MAX_NAME_BYTES)
        if not name.isprintable():
            raise self.damaged(f"tensor name {name[:80]!r} is not printable")
        dimensions = self.scalar("I", f"dimension count of {name[:80]}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.damaged(f"tensor {name[:80]} has {dimensions} dimensions")
        shape = tuple(self.scalar("Q", f"shape of {name[:80]}") for _ in range(dimensions))[::-1]
        kind, offset = self.scalar("I", f"type of {name[:80]}"), self.scalar("Q", "tensor offset")
        if math.prod(shape) < 1 or math.prod(shape) >= 1 << 62:
            raise self.damaged(f"tensor {name[:80]} has the shape {shape}")
        try:
            ggml_type = gguf.GGMLQuantizationType(kind)
        except ValueError:
            raise WeightsError(
                f"{self.path}: tensor {name[:80]} has the unknown type {kind}; a newer `gguf`"
                " package may know it"
            ) from None
        block, block_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
        if shape[-1] % block:
            raise self.damaged(
                f"{ggml_type.name} tensor {name[:80]} has rows of {shape[-1]:,}, not by {block}"
            )
        return GgufTensor(name, shape, ggml_type, offset, math.prod(shape) // block * block_bytes)

    def checked(self, entry: GgufTensor, data_start: int, alignment: int) -> GgufTensor:
        begin = data_start + entry.offset
        if entry.offset % alignment:
            raise self.damaged(
                f"tensor {entry.name[:80]} lies at an offset not aligned to {alignment}"
            )
        if begin + entry.nbytes > self.size:
            raise WeightsError(
                f"{self.path}: tensor {entry.name[:80]} ends at byte {begin + entry.nbytes:,} of a"
                f" file of {self.size:,}; the file is cut short or damaged, fetch it again"
            )
        return replace(entry, offset=begin)

    def refuse_overlap(self, tensors: dict[str, GgufTensor]) -> None:
        end = 0
        for tensor in sorted(tensors.values(), key=lambda entry: entry.offset):
            if tensor.offset < end:
                raise self.damaged(f"tensor {tensor.name[:80]} overlaps another")
            end = tensor.offset + tensor.nbytes
