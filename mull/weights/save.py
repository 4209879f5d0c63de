"""Writing a model as a Hugging Face folder that transformers, vLLM and mull itself load.

All or nothing: everything goes into a temporary folder beside the target, reaches the disk, and
takes the target's name in one rename. Tensors stream out a few rows at a time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mull.errors import WeightsError
from mull.model.checkpoint_names import Slot, checkpoint_slots
from mull.model.transformer import CausalLM
from mull.weights import fp8
from mull.weights.safetensors_folder import INDEX_NAME, SINGLE_NAME
from mull.weights.tensor_source import CHUNK_VALUES

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
MAX_SHARD_BYTES = 5_000_000_000
_TYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
}
# What DeepSeek-V3 keeps in FP8: the projections; not embedding, head, norms, router or eh_proj.
_IN_FP8 = re.compile(r"\.(q|k|v|o|q_a|q_b|kv_b|gate|up|down)_proj\.weight$|\.kv_a_proj_with_mqa\.")


@dataclass(frozen=True)
class _Entry:
    """One tensor to be written; `scale_of` marks the scales of an FP8 tensor."""

    name: str
    slot: Slot
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_scale: bool = False

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def save_folder(
    model: CausalLM,
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tokenizer_files: Path | Sequence[Path] | Mapping[str, str | Path] | None = None,
    fp8_blocks: bool = False,
) -> None:
    """Write config.json, generation_config.json, the weights and the tokenizer's files to `path`.

    dtype: float32, float16 or bfloat16; None keeps the embedding's. tokenizer_files: a folder to
    take them from, the files, or texts and files by name. fp8_blocks: projections as e4m3 with
    128x128 block scales.
    Raises WeightsError when `path` holds something already or the disk refuses; nothing half
    written is left behind.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WeightsError(f"{path}: already exists; give a new folder or remove it first")
    dtype = dtype or model.model.embed_tokens.weight.dtype
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise WeightsError(f"weights cannot be saved as {dtype}; use float32, float16 or bfloat16")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o755)
        _write_tensors(model, temporary, _entries(model, dtype, fp8_blocks), max_shard_bytes)
        _write_configs(model, temporary, dtype, fp8_blocks)
        _copy_tokenizer(tokenizer_files, temporary)
        _sync(temporary)
        temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise WeightsError(f"{path}: could not be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _entries(model: CausalLM, dtype: torch.dtype, fp8_blocks: bool) -> list[_Entry]:
    state = model.state_dict()
    entries: list[_Entry] = []
    for name, slot in checkpoint_slots(state, model.config).items():
        if slot.is_copy and slot.parameter not in state:
            continue
        whole = state[slot.parameter]
        shape = slot.shape(whole.shape)
        # The selection bias of a router is float32 by design, whatever the weights are.
        kept = name.endswith("e_score_correction_bias")
        if fp8_blocks and _IN_FP8.search(name):
            entries.append(_Entry(name, slot, shape, torch.float8_e4m3fn))
            scales = fp8.scale_shape((shape[0], shape[1]))
            scale_name = name + fp8.SCALE_SUFFIX
            entries.append(_Entry(scale_name, slot, scales, torch.float32, is_scale=True))
        else:
            entries.append(_Entry(name, slot, shape, whole.dtype if kept else dtype))
    return entries


def _write_tensors(
    model: CausalLM, folder: Path, entries: list[_Entry], max_shard_bytes: int
) -> None:
    state = model.state_dict()
    shards = list(_shards(entries, max_shard_bytes))
    names = [SINGLE_NAME]
    if len(shards) > 1:
        names = [
            f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)
        ]
        index = {
            "metadata": {"total_size": sum(entry.nbytes for entry in entries)},
            "weight_map": {
                entry.name: name
                for name, shard in zip(names, shards, strict=True)
                for entry in shard
            },
        }
        _write_json(folder / INDEX_NAME, index)
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            _write_shard(file, shard, state)
            _flush(file)


def _shards(entries: list[_Entry], max_shard_bytes: int) -> Iterator[list[_Entry]]:
    shard: list[_Entry] = []
    size = 0
    for entry in entries:
        # Scales stay beside their tensor.
        if shard and size + entry.nbytes > max_shard_bytes and not entry.is_scale:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += entry.nbytes
    yield shard


def _write_shard(file: BinaryIO, shard: list[_Entry], state: dict[str, Tensor]) -> None:
    # Widest first, so that every tensor begins at a multiple of its item size.
    ordered = sorted(shard, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": _TYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for entry in ordered:
        for rows in _converted_rows(entry, entry.slot.of(state[entry.slot.parameter]).detach()):
            file.write(rows.contiguous().view(torch.uint8).numpy().data)


def _converted_rows(entry: _Entry, tensor: Tensor) -> Iterator[Tensor]:
    is_fp8 = entry.is_scale or entry.dtype == torch.float8_e4m3fn
    group = fp8.BLOCK[0] if is_fp8 else 1
    row_values = max(1, tensor[0].numel()) if tensor.ndim > 1 else 1
    step = max(1, CHUNK_VALUES // (row_values * group)) * group
    for rows in tensor.split(step):
        rows = rows.cpu()
        yield fp8.quantise(rows)[entry.is_scale] if is_fp8 else rows.to(entry.dtype)


def _write_configs(model: CausalLM, folder: Path, dtype: torch.dtype, fp8_blocks: bool) -> None:
    dtype_name = str(dtype).removeprefix("torch.")
    config = replace(
        model.config, dtype=dtype_name, num_nextn_predict_layers=len(model.mtp)
    ).to_dict()
    if fp8_blocks:
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": list(fp8.BLOCK),
        }
    _write_json(folder / "config.json", config)
    tokens = {key: config.get(key) for key in ("bos_token_id", "eos_token_id")}
    generation = {key: value for key, value in tokens.items() if value is not None}
    _write_json(folder / "generation_config.json", generation)


def tokenizer_files_of(folder: Path) -> dict[str, Path]:
    """Those in a folder, by name."""
    return {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}


def _copy_tokenizer(
    source: Path | Iterable[Path] | Mapping[str, str | Path] | None, folder: Path
) -> None:
    if source is None:
        return
    if isinstance(source, Path):
        source = tokenizer_files_of(source) if source.is_dir() else [source]
    if not isinstance(source, Mapping):
        source = {file.name: file for file in source}
    for name, content in source.items():
        with (folder / name).open("xb") as target:
            target.write(content.encode() if isinstance(content, str) else content.read_bytes())
            _flush(target)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with path.open("xb") as file:
        file.write(json.dumps(values, indent=2).encode() + b"\n")
        _flush(file)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
