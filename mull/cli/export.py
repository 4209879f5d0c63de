"""`mull export`: a model for other programs, as one GGUF file or a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mull.cli.options import ModelArgument
from mull.cli.progress import progress_bar
from mull.cli.terminal import in_gb, note
from mull.errors import WeightsError

if TYPE_CHECKING:
    from mull.model.config import ModelConfig
    from mull.weights import ModelFiles

_FOLDER_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def export(
    model: ModelArgument,
    format: Annotated[
        str, typer.Option(metavar="F", help="gguf (llama.cpp, Ollama) or hf (vLLM, transformers).")
    ] = "gguf",
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="PATH", help="Default: named after model and type."),
    ] = None,
    type: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="f32, f16, bf16; for gguf also q8_0 and q4_0. Default: f16; hf: as stored.",
        ),
    ] = None,
) -> None:
    """Write a model's weights, tokenizer and chat template for other programs.

    Norms, biases and routers stay in 32 bits in a GGUF file. Nothing that exists is overwritten,
    and nothing half written is left behind.
    """
    from mull import weights

    if format not in ("gguf", "hf"):
        raise WeightsError(f"format {format!r} is not known: use gguf or hf")
    files = weights.resolve(model)
    config = weights.load_config(files)
    if format == "gguf":
        path = _export_gguf(files, config, out, type or "f16")
        size = path.stat().st_size
    else:
        path = _export_folder(files, config, out, type)
        size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{path}: {in_gb(size)}")


def _export_gguf(files: ModelFiles, config: ModelConfig, out: str | None, type: str) -> Path:
    from mull import text, weights
    from mull.weights.store import typed_path

    name = f"{_stem(files)}-{type}.gguf"
    path = typed_path(out or name)
    if path.is_dir():
        path = path / name
    source = _tokenizer(files)
    tokenizer = None
    if source is not None:
        tokenizer = text.gguf_tokenizer(
            source, config.vocab_size, bos_id=config.bos_token_id, eos_ids=config.eos_token_ids
        )
    if config.has_mtp:
        note("multi-token prediction is left out: llama.cpp has no place for it in this model")
    if config.topk_method == "group_limited_greedy":
        note(
            "llama.cpp scores groups of experts otherwise than this model: its answers will differ"
        )
    with progress_bar(f"Exporting {files.name}", in_bytes=True) as progress:
        weights.export_gguf(files, path, type=type, tokenizer=tokenizer, progress=progress)
    return path


def _export_folder(
    files: ModelFiles, config: ModelConfig, out: str | None, type: str | None
) -> Path:
    import torch

    from mull import text, weights
    from mull.weights.store import typed_path

    if type is not None and type not in _FOLDER_TYPES:
        raise WeightsError(f"type {type!r} is not one of {', '.join(_FOLDER_TYPES)}, which hf has")
    dtype = getattr(torch, _FOLDER_TYPES[type]) if type else None
    path = typed_path(out or f"{_stem(files)}-{type or 'hf'}")
    source: Any = _tokenizer(files)
    if isinstance(source, dict):
        source = text.hf_tokenizer_files(source)
    with progress_bar(f"Reading {files.name}", in_bytes=True) as progress:
        built = weights.load_model(
            files, dtype=dtype, mtp=weights.holds_mtp(files), progress=progress
        )
    weights.save_folder(built, path, tokenizer_files=source)
    return path


def _tokenizer(files: ModelFiles) -> Path | dict[str, Any] | None:
    from mull import weights

    try:
        return weights.tokenizer_source(files)
    except WeightsError as error:
        note(f"{error}: exported without a tokenizer")
        return None


def _stem(files: ModelFiles) -> str:
    return files.name.replace("/", "--").replace(":", "+")
