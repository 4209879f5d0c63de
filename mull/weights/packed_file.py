"""The file of a prepared model's tensors: safetensors layout, every tensor on a 64-byte boundary.

Nothing in such a file is believed. Who reads one knows which tensors it must hold and what it was
made of, so the header it must begin with is known to the byte; a file with any other is of another
model or version, or damaged. The data ends with its CRC-32, which tells damage, not malice: the
numbers of a forged file would be wrong, but they are only ever numbers.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mull.errors import WeightsError
from mull.kernels.pages import zeros_in_huge_pages

ALIGNMENT = 64
# Up to here a file is read into memory of huge pages (4.5 % faster decoding) and its checksum is
# compared; beyond, that would take up to seconds: it is mapped, and shared with other processes.
# Recent kernels map the pages they have just written as huge ones too.
MAX_READ_BYTES = 200 * 10**6
_PIECE = 1 << 22
_CRC_BYTES = 4
_DTYPES = {
    torch.uint8: "U8",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int32: "I32",
    torch.int64: "I64",
}


class PackedFileError(WeightsError):
    """The file is not the one asked for; the message says how."""


@dataclass(frozen=True)
class Layout:
    """What a file begins with, and where each tensor's bytes lie after it."""

    header: bytes
    offsets: dict[str, int]
    data_bytes: int

    @property
    def size(self) -> int:
        return len(self.header) + self.data_bytes + _CRC_BYTES


def layout_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Layout:
    """How these tensors (on the meta device, or real) lie in a file with this metadata."""
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offsets, at = {}, 0
    for name, tensor in tensors.items():
        offsets[name] = at
        end = at + tensor.nbytes
        entries[name] = _entry(_DTYPES[tensor.dtype], list(tensor.shape), at, end)
        at = math.ceil(end / ALIGNMENT) * ALIGNMENT
        if at > end:  # the format allows no gaps
            entries[f"{name}.padding"] = _entry("U8", [at - end], end, at)
    entries["crc32"] = _entry("U8", [_CRC_BYTES], at, at + _CRC_BYTES)
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = math.ceil((8 + len(text)) / ALIGNMENT) * ALIGNMENT - 8
    return Layout(length.to_bytes(8, "little") + text.ljust(length), offsets, at)


def _entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_packed(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write the tensors to an empty file; to be durable, and to be renamed, by the caller."""
    layout = layout_of(tensors, metadata)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, layout.size)  # a full disk is told at once
    file.write(layout.header)
    crc = 0
    for tensor in tensors.values():
        raw = memoryview(_bytes_of(tensor).numpy())  # type: ignore[arg-type]
        padding = bytes(-len(raw) % ALIGNMENT)
        for piece in (raw, padding):
            crc = zlib.crc32(piece, crc)
            file.write(piece)
    file.write(crc.to_bytes(_CRC_BYTES, "little"))


def read_packed(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, Tensor]:
    """Tensors of the shapes and dtypes of `tensors`, out of the file that `write_packed` made.

    They share one block of memory, or the file's own map where it is large; read only. Raises
    PackedFileError for a file with another header or size, or damaged data; OSError.
    """
    layout = layout_of(tensors, metadata)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != layout.size:
            raise PackedFileError(f"has {size:,} bytes and not {layout.size:,}")
        if file.read(len(layout.header)) != layout.header:
            raise PackedFileError("was made of other weights, or by another version of mull")
        if size > MAX_READ_BYTES:
            data = _mapped(file)[len(layout.header) :]
        else:
            data = zeros_in_huge_pages((layout.data_bytes,), torch.uint8)
            _read_checked(file, data)
    return {
        name: _view(data[begin : begin + tensors[name].nbytes], tensors[name])
        for name, begin in layout.offsets.items()
    }


def _view(data: Tensor, like: Tensor) -> Tensor:
    return data.view(like.dtype).view(like.shape)


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _read_checked(file: BinaryIO, data: Tensor) -> None:
    into = memoryview(data.numpy())  # type: ignore[arg-type]  # numpy before 2.3 names no Buffer
    at = crc = 0
    while at < len(into):
        piece = into[at : at + _PIECE]
        count = file.readinto(piece)  # type: ignore[attr-defined]
        if not count:
            raise PackedFileError("is cut short")
        crc = zlib.crc32(piece[:count], crc)
        at += count
    if file.read(_CRC_BYTES) != crc.to_bytes(_CRC_BYTES, "little"):
        raise PackedFileError("is damaged (its checksum is wrong)")


def _mapped(file: BinaryIO) -> Tensor:
    block = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_WILLNEED"):
        block.madvise(mmap.MADV_WILLNEED)  # read ahead, so that the first tokens need not wait
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch cannot say read-only, and nobody writes weights
        return torch.frombuffer(block, dtype=torch.uint8)
