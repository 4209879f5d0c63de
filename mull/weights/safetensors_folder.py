"""Hugging Face folders: config.json and every tensor of their safetensors files, read on demand.

Reading goes through the `safetensors` package (a memory map, offsets checked against the file).
Pickled weights are never opened: loading one runs whatever code is in it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mull.errors import WeightsError
from mull.weights import fp8
from mull.weights.tensor_source import TensorSource

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# DeepSeek-V3's index, the largest published, is 9 MB.
MAX_INDEX_BYTES = 64 << 20
MAX_CONFIG_BYTES = 4 << 20

_FP8 = "F8_E4M3"
_READABLE = {"F64", "F32", "F16", "BF16", _FP8}


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object out of an untrusted file, at most `limit` bytes; WeightsError otherwise."""
    try:
        if path.exists() and not path.is_file():
            raise WeightsError(f"{path}: is no regular file; fetch the model again")
        with path.open("rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise WeightsError(f"{path}: is too large; at most {limit:,} bytes are read")
        values = json.loads(raw)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file; fetch the model again") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise WeightsError(f"{path}: is not valid JSON ({reason}); fetch it again") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: holds no JSON object; fetch it again")
    return values


def folder_sources(folder: Path, config: dict[str, Any]) -> dict[str, TensorSource]:
    """Every tensor of the folder by its name, FP8 blocks already joined with their scales.

    config: the parsed config.json, for the size of FP8 blocks. Raises WeightsError.
    """
    sources: dict[str, TensorSource] = {}
    block = _fp8_block(folder, config)
    shards = _shards(folder)
    for path in shards:
        for name, source in _file_sources(path).items():
            if name in sources:
                raise WeightsError(f"{path}: tensor {name[:80]} is also in {sources[name].origin}")
            sources[name] = source
    _refuse_missing(folder, sources)
    return _join_scales(sources, block)


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX_NAME
    if index.exists():
        return [folder / name for name in sorted(set(_weight_map(index).values()))]
    if (folder / SINGLE_NAME).exists():
        return [folder / SINGLE_NAME]
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickled:
        raise WeightsError(
            f"{folder}: has its weights only as {pickled[0]}, a pickle, which can run code when"
            " opened; use a version of the model in safetensors"
        )
    raise WeightsError(f"{folder}: has no .safetensors file; fetch the model again")


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise WeightsError(f"{index}: has no weight_map; fetch it again")
    for name, file in weight_map.items():
        # A plain name: an index must not reach outside its folder.
        is_plain = isinstance(file, str) and file == Path(file).name
        if not is_plain or not file.endswith(".safetensors"):
            raise WeightsError(
                f"{index}: tensor {name[:80]!r} lies in {str(file)[:80]!r}, no file here"
            )
    return weight_map


def _refuse_missing(folder: Path, sources: dict[str, TensorSource]) -> None:
    index = folder / INDEX_NAME
    if not index.exists():
        return
    for name, file in _weight_map(index).items():
        if name not in sources or sources[name].origin.name != file:
            raise WeightsError(
                f"{folder / file}: lacks tensor {name[:80]!r}, which the index puts there"
            )


def _file_sources(path: Path) -> dict[str, TensorSource]:
    try:
        file = safe_open(path, framework="pt", device="cpu")
        return {name: _source(path, file, name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path}: is not a whole safetensors file ({reason}); fetch it again"
        ) from error


def _source(path: Path, file: Any, name: str) -> TensorSource:
    if not name.isprintable():
        raise WeightsError(
            f"{path}: tensor name {name[:80]!r} is not printable; the file is damaged"
        )
    view = file.get_slice(name)
    shape, kind = tuple(view.get_shape()), view.get_dtype()
    if kind not in _READABLE:
        raise WeightsError(
            f"{path}: tensor {name[:80]} is of type {kind}, which mull does not read"
        )

    def read(start: int, stop: int) -> Tensor:
        rows: Tensor = file.get_slice(name)[start:stop]
        return rows

    return TensorSource(name, shape, path, read, kind=kind)


def _fp8_block(folder: Path, config: dict[str, Any]) -> tuple[int, int]:
    found = config.get("quantization_config")
    if found is None:
        return fp8.BLOCK
    method = found.get("quant_method") if isinstance(found, dict) else found
    if not isinstance(found, dict) or method != "fp8":
        raise WeightsError(
            f"{folder}: is quantised with {str(method)[:40]!r}; mull reads fp8 blocks, plain"
            " floats and GGUF"
        )
    block = found.get("weight_block_size", list(fp8.BLOCK))
    if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(side) is int and 1 <= side <= 4096 for side in block)
    ):
        raise WeightsError(
            f"{folder}: config.json says weight_block_size {block!r:.60}; give two sizes"
        )
    return block[0], block[1]


def _join_scales(
    sources: dict[str, TensorSource], block: tuple[int, int]
) -> dict[str, TensorSource]:
    """FP8 tensors become float ones; their scales disappear from the list."""
    joined: dict[str, TensorSource] = {}
    for name, source in sources.items():
        weight_name = name.removesuffix(fp8.SCALE_SUFFIX)
        weight = sources.get(weight_name)
        if weight is not None and weight is not source and weight.kind == _FP8:
            continue
        is_fp8 = source.kind == _FP8
        scale = sources.get(name + fp8.SCALE_SUFFIX)
        joined[name] = _scaled(source, scale, block) if is_fp8 else source
    return joined


def _scaled(
    source: TensorSource, scale: TensorSource | None, block: tuple[int, int]
) -> TensorSource:
    if scale is None:
        raise WeightsError(
            f"{source.origin}: tensor {source.name[:80]} is fp8, but its scales,"
            f" {source.name[:80]}{fp8.SCALE_SUFFIX}, are missing"
        )
    if len(source.shape) != 2:
        raise WeightsError(f"{source.origin}: fp8 tensor {source.name[:80]} is no matrix")
    wanted = fp8.scale_shape((source.shape[0], source.shape[1]), block)
    if scale.shape != wanted:
        raise WeightsError(
            f"{scale.origin}: tensor {scale.name[:80]} has the shape {scale.shape}, but blocks of"
            f" {block} need {wanted}"
        )
    scale_source, height = scale, block[0]

    def read(start: int, stop: int) -> Tensor:
        scale_rc = scale_source.read(start // height, -(-stop // height))
        return fp8.dequantise(source.read(start, stop), scale_rc, block)

    return replace(source, read=read, row_group=height)
