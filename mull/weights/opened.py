"""A model's files, opened once: its configuration, its tokenizer's source, and its tensors.

A start needs the first two always and the tensors only where there is no packed file, so they are
looked up when asked for. GGUF headers are read once, whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mull.errors import ModelError, WeightsError
from mull.model.config import ModelConfig
from mull.weights.files import ModelFiles

if TYPE_CHECKING:
    from mull.weights.gguf_file import GgufFile
    from mull.weights.tensor_source import TensorSource


_KEPT_BY_Q4 = ("Q4_0", "Q4_1")


class OpenedModel:
    """Raises WeightsError or ModelError where the files are not a model mull reads."""

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.path = files.path

    @cached_property
    def config(self) -> ModelConfig:
        """The model's shape, from config.json or GGUF metadata."""
        config = _config_from(self._values, self.path)
        return config if self.files.kind == "gguf" else _with_chat_ends(config, self.path)

    @cached_property
    def sources(self) -> Mapping[str, TensorSource]:
        """Every tensor by its checkpoint name; opens the weights of a folder."""
        if self.files.kind == "gguf":
            from mull.weights.gguf_tensors import gguf_sources

            return gguf_sources(self.parts, self._values)
        from mull.weights.safetensors_folder import folder_sources

        return folder_sources(self.path, self._values)

    @cached_property
    def is_four_bit(self) -> bool:
        """Whether most of the weights are stored in a 4-bit format that q4 keeps value for value.

        Not so of Q4_K and the like: their scales are products that half precision rounds.
        """
        if self.files.kind != "gguf":
            return False
        tensors = [tensor for part in self.parts for tensor in part.tensors.values()]
        kept = sum(tensor.nbytes for tensor in tensors if tensor.type.name in _KEPT_BY_Q4)
        return 2 * kept > sum(tensor.nbytes for tensor in tensors)

    @property
    def tokenizer_source(self) -> Path | dict[str, Any]:
        """What text/ makes a tokenizer of: a folder with a tokenizer.json, or GGUF metadata."""
        if self.files.kind == "gguf":
            metadata = self.parts[0].metadata
            if not metadata.get("tokenizer.ggml.tokens"):
                raise WeightsError(
                    f"{self.path}: carries no tokenizer (tokenizer.ggml.tokens); "
                    "convert it with one"
                )
            return metadata
        if not (self.path / "tokenizer.json").is_file():
            raise WeightsError(
                f"{self.path}: has no tokenizer.json; copy it from where the model came from"
            )
        return self.path

    @cached_property
    def parts(self) -> list[GgufFile]:
        """The files of a GGUF model, their headers read."""
        from mull.weights.gguf_file import open_gguf

        return open_gguf(self.path)

    @cached_property
    def _values(self) -> dict[str, Any]:
        """config.json, or what it would be."""
        if self.files.kind == "gguf":
            from mull.weights.gguf_config import config_from_gguf

            return config_from_gguf(self.parts)
        from mull.weights.safetensors_folder import read_json

        return read_json(self.path / "config.json")


def _with_chat_ends(config: ModelConfig, folder: Path) -> ModelConfig:
    """Chat models often name their end-of-turn token only in generation_config.json."""
    from mull.weights.safetensors_folder import read_json

    generation = folder / "generation_config.json"
    if not generation.exists():
        return config
    ends = read_json(generation).get("eos_token_id")
    more = ends if isinstance(ends, list) else [ends]
    known = [end for end in more[:1000] if type(end) is int and 0 <= end < config.vocab_size]
    return replace(config, eos_token_ids=tuple(dict.fromkeys([*config.eos_token_ids, *known])))


def _config_from(values: Mapping[str, Any], path: Path) -> ModelConfig:
    try:
        return ModelConfig.from_dict(values)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
