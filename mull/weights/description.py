"""Everything known of a model, for `mull show`: from its files, or before a pull the catalogue."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mull.errors import WeightsError
from mull.weights import catalog, memory, store
from mull.weights.catalog import CatalogEntry, HubSource, WheelSource
from mull.weights.files import ModelFiles
from mull.weights.manifest import Progress, damaged_files, read_manifest
from mull.weights.packed_place import packed_bytes
from mull.weights.precision import auto_precision

if TYPE_CHECKING:
    from mull.model.config import ModelConfig
    from mull.weights.gguf_file import GgufFile


def describe(model: str | Path | ModelFiles) -> dict[str, Any]:
    """Facts by name, in the order they are shown; None where a fact is not known.

    model: what `resolve` takes, its result, or a name of the catalogue that is not pulled yet.
    Sizes in bytes, cache for bf16; parameters without MTP modules and, where there are some, with
    them. Raises WeightsError where there is no such model.
    """
    if not isinstance(model, ModelFiles):
        try:
            model = store.resolve(model)
        except WeightsError:
            entry = catalog.find(str(model))
            if entry is None or store.folder_of(entry.name).exists():
                raise
            return _describe_entry(entry)
    return _describe_files(model)


def verify(model: str | Path | ModelFiles, progress: Progress | None = None) -> list[str]:
    """Hash every file of a pulled model; returns those that are not what the manifest says."""
    files = model if isinstance(model, ModelFiles) else store.resolve(model)
    folder = files.path if files.kind == "hf" else _folder_of_gguf(files)
    manifest = read_manifest(folder)
    if manifest is None:
        raise WeightsError(f"{files.name} was not pulled: there is no manifest to check it against")
    return damaged_files(folder, manifest.files, progress)


def _folder_of_gguf(files: ModelFiles) -> Path:
    # a GGUF may lie in a subfolder of what was pulled
    home = store.models_home()
    if files.manifest is not None and files.path.is_relative_to(home):
        return home / files.path.relative_to(home).parts[0]
    return files.path.parent


def _describe_files(files: ModelFiles) -> dict[str, Any]:
    from mull.weights.opened import OpenedModel

    opened = OpenedModel(files)
    config = opened.config
    manifest = files.manifest or {}
    source = manifest.get("source", {})
    is_from_catalog = source.get("kind") in ("hub", "wheel")
    entry = catalog.find(files.name) if is_from_catalog else None
    stored = _stored_gguf(opened.parts) if files.kind == "gguf" else _stored_folder(files.path)
    licence = manifest.get("licence") or stored.pop("licence", None)
    return {
        "name": files.name,
        "path": str(files.path),
        "format": files.kind,
        "pulled": bool(manifest) and not store.is_shipped(files),
        **stored,
        "packed_bytes": packed_bytes(files),
        **_shape(config),
        **_told(entry, licence),
        "source": _source_line(source) if source else None,
        "revision": manifest.get("revision"),
        "pulled_at": manifest.get("pulled_at"),
        "auto": _auto(config, opened.is_four_bit),
        "fits": _what_fits(config),
        "files": [
            {"path": item["path"], "bytes": item["size"], "sha256": item["sha256"]}
            for item in manifest.get("files", [])
        ],
    }


def _describe_entry(entry: CatalogEntry) -> dict[str, Any]:
    from mull.model.config import ModelConfig

    config = ModelConfig.from_dict(entry.config)
    source = entry.source
    kind = "hub" if isinstance(source, HubSource) else "wheel"
    return {
        "name": entry.name,
        "path": None,
        "format": "hf" if isinstance(source, HubSource) else "gguf",
        "pulled": False,
        "download_bytes": entry.download_bytes,
        **_shape(config),
        **_told(entry, None),
        "source": _source_line({"kind": kind, **vars(source)}),
        "revision": source.version if isinstance(source, WheelSource) else None,
        "auto": _auto(config, is_four_bit=False),
        "fits": _what_fits(config),
    }


def _shape(config: ModelConfig) -> dict[str, Any]:
    total, active = config.parameter_count()
    with_mtp = {}
    if config.has_mtp:
        names = ("parameters_with_mtp", "active_parameters_with_mtp")
        with_mtp = dict(zip(names, config.parameter_count(mtp=True), strict=True))
    return {
        "architecture": config.model_type,
        "parameters": total,
        "active_parameters": active,
        **with_mtp,
        "layers": config.num_hidden_layers,
        "context": config.max_position_embeddings,
        "cache_bytes_per_token": memory.cache_bytes(config, 1),
    }


def _told(entry: CatalogEntry | None, licence: str | None) -> dict[str, Any]:
    return {
        "licence": licence or (entry.licence if entry else None),
        "template": entry.template if entry else None,
        "sampling": dict(entry.sampling) if entry else {},
    }


def _what_fits(config: ModelConfig) -> list[dict[str, Any]]:
    have = memory.available_memory()
    return [
        {
            "precision": precision,
            "weight_bytes": memory.weight_bytes(config, precision),
            "needed_bytes": memory.needed_bytes(config, precision),
            "available_bytes": have,
            "fits": memory.needed_bytes(config, precision) <= have,
            "largest_context": memory.largest_context(config, precision, have),
        }
        for precision in memory.PRECISIONS
    ]


def _auto(config: ModelConfig, is_four_bit: bool) -> dict[str, str]:
    """What --precision auto chooses on this machine, and why."""
    import torch

    from mull.kernels import native_available

    on_cpu = not torch.cuda.is_available()
    choice = auto_precision(
        config, is_four_bit=is_four_bit, on_cpu=on_cpu, native=native_available()
    )
    return choice._asdict()


def _stored_gguf(parts: list[GgufFile]) -> dict[str, Any]:
    """Size over all parts, the tensor types that take most bytes, and the licence it names."""
    types: Counter[str] = Counter()
    for part in parts:
        for tensor in part.tensors.values():
            types[tensor.type.name] += tensor.nbytes
    licence = parts[0].metadata.get("general.license")
    return {
        "bytes": sum(part.path.stat().st_size for part in parts),
        "stored_as": ", ".join(name for name, _size in types.most_common(3)),
        "licence": licence if isinstance(licence, str) else None,
    }


def _stored_folder(path: Path) -> dict[str, Any]:
    """Size of all files, and the data type or quantisation that config.json tells of."""
    from mull.weights.safetensors_folder import read_json

    values = read_json(path / "config.json")
    quantised = values.get("quantization_config")
    dtype = values.get("torch_dtype") or values.get("dtype")
    return {
        "bytes": sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
        "stored_as": quantised.get("quant_method") if isinstance(quantised, dict) else dtype,
    }


def _source_line(source: dict[str, Any]) -> str:
    if source.get("kind") == "hub":
        select = f" ({source['select']})" if source.get("select") else ""
        return f"hub {source.get('repository')}{select}"
    if source.get("kind") == "wheel":
        return f"package {source.get('package')} {source.get('version')}, {source.get('file')}"
    if source.get("kind") == "shipped":
        return "comes with mull"
    return f"path {source.get('path')}"
