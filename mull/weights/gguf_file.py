"""GGUF files: one or several parts of a model, rows of tensors straight out of the memory map.

The block formats are those of `gguf.quants`; only the rows asked for are ever dequantised.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from mull.errors import WeightsError
from mull.weights.gguf_header import GgufTensor, HeaderReader

_SPLIT_NAME = re.compile(r"^(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")

GgmlType = gguf.GGMLQuantizationType
# What a weight may be stored as: plain floats, and everything `gguf.quants` can take apart.
READABLE_TYPES = frozenset({GgmlType.F32, GgmlType.F16}) | frozenset(gguf.quants._type_traits)


class GgufFile:
    """One GGUF file: `metadata` (keys as in the file) and `tensors` by name, checked on opening.

    Raises WeightsError for anything that is not a complete little-endian GGUF of version 2 or 3.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _map_file(path)
        header = HeaderReader(self._map, path)
        header.read_preamble()
        self.metadata = header.read_metadata()
        self.tensors = header.read_tensor_table(self.metadata)

    def rows(self, tensor: GgufTensor, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows start..stop of the tensor (all dimensions but the last flattened), as float32."""
        if tensor.type not in READABLE_TYPES:
            raise WeightsError(
                f"{self.path}: tensor {tensor.name} is of type {tensor.type.name}, which mull"
                " cannot read as a weight; use a file quantised to another type"
            )
        row_bytes = tensor.nbytes // tensor.rows
        raw = np.frombuffer(
            self._map,
            dtype=np.uint8,
            count=(stop - start) * row_bytes,
            offset=tensor.offset + start * row_bytes,
        )
        with np.errstate(all="ignore"):  # damaged scales may overflow; that is not our arithmetic
            values = gguf.quants.dequantize(raw.reshape(stop - start, row_bytes), tensor.type)
        # float32 comes back as a view of the read-only map, which torch does not accept.
        return values if values.flags.writeable else values.copy()


def open_gguf(path: Path) -> list[GgufFile]:
    """The file, or all parts of a split model (NAME-00001-of-00005.gguf) when given its first.

    Returns at least one file; the first carries the metadata.
    """
    first = GgufFile(path)
    parts = first.metadata.get("split.count", 0)
    if not isinstance(parts, int) or parts <= 1:
        return [first]
    match = _SPLIT_NAME.match(path.name)
    if match is None or int(match["parts"]) != parts or int(match["part"]) != 1:
        raise WeightsError(
            f"{path}: is one of {parts} parts; give the first, named like"
            f" NAME-00001-of-{parts:05d}.gguf"
        )
    files = [first]
    for part in range(2, parts + 1):
        files.append(GgufFile(path.with_name(f"{match['stem']}-{part:05d}-of-{parts:05d}.gguf")))
    return files


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise WeightsError(f"{path}: cannot be read as a GGUF file: {error}") from error
