"""Writing a model as one GGUF file that llama.cpp runs: the same weights, or quantised ones.

All or nothing: the file grows under a temporary name beside the target, reaches the disk, and takes
the target's name in one rename. Tensors stream through a few rows at a time.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import torch

from mull.errors import WeightsError
from mull.model.config import ModelConfig
from mull.model.transformer import CausalLM
from mull.weights.files import ModelFiles
from mull.weights.gguf_export_config import gguf_architecture, gguf_metadata
from mull.weights.gguf_export_tensors import ExportTensor, export_tensors, model_sources
from mull.weights.gguf_quantise import GgmlType, row_bytes, to_bytes
from mull.weights.loader import Progress, one_thread, open_checked
from mull.weights.order import require_space
from mull.weights.tensor_source import TensorSource

TYPES = {
    "f32": (GgmlType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (GgmlType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (GgmlType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (GgmlType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GgmlType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
# A vocabulary of nothing: llama.cpp runs such a file on token ids.
NO_TOKENIZER = {"tokenizer.ggml.model": "none"}


def export_gguf(
    files: ModelFiles,
    path: Path,
    *,
    type: str = "f16",
    tokenizer: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a model's files as `path`; the model is never in memory as a whole.

    type: f32, f16, bf16, q8_0 or q4_0, of the matrices. tokenizer: `tokenizer.*` metadata, None for
    a file without one. progress(done, total) counts bytes written. Raises WeightsError.
    """
    config, sources = open_checked(files)
    names = {"general.name": files.name}
    _write(config, sources, path, type, {**names, **(tokenizer or NO_TOKENIZER)}, progress)


def save_gguf(
    model: CausalLM,
    path: Path,
    *,
    type: str = "f16",
    tokenizer: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """The same of a model in memory. MTP modules are left out: llama.cpp would refuse them."""
    sources = model_sources(model)
    _write(model.config, sources, path, type, tokenizer or NO_TOKENIZER, progress)


@dataclass(frozen=True)
class _Entry:
    """One tensor to be written and the type it is stored as."""

    tensor: ExportTensor
    kind: GgmlType

    @property
    def nbytes(self) -> int:
        *rows, columns = self.tensor.shape
        return math.prod(rows) * row_bytes(self.kind, columns)


def _write(
    config: ModelConfig,
    sources: Mapping[str, TensorSource],
    path: Path,
    type: str,
    told: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    if type not in TYPES:
        raise WeightsError(f"GGUF type {type!r} is not one of {', '.join(TYPES)}")
    if path.exists():
        raise WeightsError(f"{path}: already exists; give a new name or remove it first")
    wanted, file_type = TYPES[type]
    metadata = {
        "general.file_type": int(file_type),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **gguf_metadata(config),
        **told,
    }
    tensors = export_tensors(config, sources)
    is_tied = "output.weight" not in tensors
    entries = [
        _Entry(tensor, tensor.stored_as(wanted, is_tied=is_tied)) for tensor in tensors.values()
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path.parent, sum(entry.nbytes for entry in entries), path.name)
        with _growing(path) as temporary:
            _write_file(temporary, gguf_architecture(config), metadata, entries, progress)
    except OSError as error:
        raise WeightsError(f"{path}: could not be written: {error.strerror or error}") from error


def _write_file(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    entries: Sequence[_Entry],
    progress: Progress | None,
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add_value(writer, key, value)
    for entry in entries:
        name, shape = entry.tensor.name, entry.tensor.shape
        writer.add_tensor_info(name, shape, np.dtype(np.float32), entry.nbytes, entry.kind)
    writer.open_output_file()
    assert writer.fout is not None
    with writer.fout[0] as file:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.write_padding(file, file.tell())
        _write_tensors(writer, file, entries, progress)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _growing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` at the end, or is gone."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o644)
        yield temporary
        temporary.rename(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """One metadata entry, its type taken from the Python value."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _write_tensors(
    writer: gguf.GGUFWriter,
    file: BinaryIO,
    entries: Sequence[_Entry],
    progress: Progress | None,
) -> None:
    total = sum(entry.nbytes for entry in entries)
    done = 0
    workers = os.cpu_count() or 1
    with one_thread(), ThreadPoolExecutor(workers) as pool:
        for entry in entries:
            for data in _in_order(pool, _jobs(entry), ahead=2 * workers):
                file.write(data)
                done += len(data)
                if progress is not None:
                    progress(done, total)
            writer.write_padding(file, entry.nbytes)


def _jobs(entry: _Entry) -> Iterator[Callable[[], memoryview]]:
    """The tensor's bytes a few rows at a time, each piece still to be computed."""
    for source in entry.tensor.sources:
        step = source.rows_per_chunk
        for start in range(0, source.shape[0], step):
            stop = min(start + step, source.shape[0])

            def job(
                source: TensorSource = source, start: int = start, stop: int = stop
            ) -> memoryview:
                return _bytes_of(source, start, stop, entry.kind)

            yield job


def _bytes_of(source: TensorSource, start: int, stop: int, kind: GgmlType) -> memoryview:
    rows = source.read(start, stop)
    packed = to_bytes(rows[None] if rows.ndim == 1 else rows, kind)
    if kind is not GgmlType.F32 and not _is_sound(rows, kind):
        raise WeightsError(
            f"{source.origin}: tensor {source.name} holds a value that {kind.name} cannot; "
            "use --type f32"
        )
    return packed.numpy().data.cast("B")


def _is_sound(rows: torch.Tensor, kind: GgmlType) -> bool:
    limit = torch.finfo(torch.float32 if kind is GgmlType.BF16 else torch.float16).max
    return bool(rows.abs().max() <= limit)


def _in_order(
    pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], memoryview]], *, ahead: int
) -> Iterator[memoryview]:
    """Results in the jobs' order, at most `ahead` of them computed before they are taken."""
    waiting: deque[Future[memoryview]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
