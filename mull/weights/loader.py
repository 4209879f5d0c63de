"""From files to a CausalLM: every tensor accounted for, each copied once into its final place.

The model is laid out on the meta device first, so that names and shapes are checked before a byte
is allocated; then each parameter is made in its final dtype and filled a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mull.errors import ModelError, WeightsError
from mull.model.checkpoint_names import Slot, checkpoint_slots, is_known_surplus
from mull.model.config import ModelConfig
from mull.model.transformer import CausalLM
from mull.weights.files import ModelFiles
from mull.weights.gguf_config import config_from_gguf
from mull.weights.gguf_file import GgufFile, open_gguf
from mull.weights.gguf_tensors import gguf_sources
from mull.weights.safetensors_folder import folder_sources, read_json
from mull.weights.tensor_source import TensorSource

Progress = Callable[[int, int], None]
_NAMED_IN_ERROR = 3


def load_config(files: ModelFiles) -> ModelConfig:
    """The model's shape, from config.json or GGUF metadata. Raises WeightsError or ModelError."""
    if files.kind == "gguf":
        return _gguf_config(open_gguf(files.path))[1]
    return _folder_config(files.path)[1]


def load_model(
    files: ModelFiles,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    mtp: bool = False,
) -> CausalLM:
    """The model with its weights, in eval mode.

    dtype: None keeps the configuration's own. progress(done_bytes, total_bytes) counts bytes of the
    resident model. mtp: also build and load the multi-token-prediction modules. Peak memory is the
    model and a few MB. Raises WeightsError naming tensor and file when one is missing, surplus or
    of another shape than the configuration says.
    """
    config, sources = _open(files)
    _refuse_impossible(files.path, config, sources)
    with _NoRandomNumbers():
        model = CausalLM(config, mtp=mtp, device="meta", dtype=dtype or _own_dtype(config))
    slots = _checked_slots(files.path, model, sources)
    with one_thread():
        _fill(model, slots, sources, torch.device(device), progress)
    model.tie_weights()
    return model.eval()


def open_checked(files: ModelFiles) -> tuple[ModelConfig, dict[str, TensorSource]]:
    """The shape and every tensor still in its file, names and shapes checked; MTP left out.

    Raises WeightsError, as `load_model` does, which reads the same tensors.
    """
    config, sources = _open(files)
    _refuse_impossible(files.path, config, sources)
    with _NoRandomNumbers():
        model = CausalLM(config, device="meta", dtype=_own_dtype(config))
    return config, {name: sources[name] for name in _checked_slots(files.path, model, sources)}


def holds_mtp(files: ModelFiles) -> bool:
    """Whether the files hold multi-token-prediction modules, which `load_model` loads on demand."""
    config, sources = _open(files)
    prefix = f"model.layers.{config.num_hidden_layers}."
    return config.has_mtp and any(name.startswith(prefix) for name in sources)


def tokenizer_source(files: ModelFiles) -> Path | dict[str, Any]:
    """What text/ makes a tokenizer of: the folder (it has a tokenizer.json), or GGUF metadata."""
    if files.kind == "gguf":
        metadata = open_gguf(files.path)[0].metadata
        if not metadata.get("tokenizer.ggml.tokens"):
            raise WeightsError(
                f"{files.path}: carries no tokenizer (tokenizer.ggml.tokens); convert it with one"
            )
        return metadata
    if not (files.path / "tokenizer.json").is_file():
        raise WeightsError(
            f"{files.path}: has no tokenizer.json; copy it from where the model came from"
        )
    return files.path


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves meta tensors as they are where a module would draw its first weights.

    Filling nothing would be harmless, but torch imports its compiler for it: a second and 70 MB.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func is nn.init.normal_:
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


def _own_dtype(config: ModelConfig) -> torch.dtype:
    """What the weights were published in; FP8 is a storage format, computed in bfloat16."""
    name = "bfloat16" if config.dtype.startswith("float8") else config.dtype
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _open(files: ModelFiles) -> tuple[ModelConfig, dict[str, TensorSource]]:
    if files.kind == "gguf":
        parts = open_gguf(files.path)
        values, config = _gguf_config(parts)
        return config, gguf_sources(parts, values)
    values, config = _folder_config(files.path)
    return config, folder_sources(files.path, values)


def _gguf_config(parts: list[GgufFile]) -> tuple[dict[str, Any], ModelConfig]:
    values = config_from_gguf(parts)
    return values, _config_from(values, parts[0].path)


def _folder_config(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    values = read_json(folder / "config.json")
    config = _config_from(values, folder)
    generation = folder / "generation_config.json"
    if generation.exists():
        # Chat models often name their end-of-turn token only here.
        ends = read_json(generation).get("eos_token_id")
        more = ends if isinstance(ends, list) else [ends]
        known = [end for end in more[:1000] if type(end) is int and 0 <= end < config.vocab_size]
        config = replace(
            config, eos_token_ids=tuple(dict.fromkeys([*config.eos_token_ids, *known]))
        )
    return values, config


def _config_from(values: Mapping[str, Any], path: Path) -> ModelConfig:
    try:
        return ModelConfig.from_dict(values)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _refuse_impossible(
    path: Path, config: ModelConfig, sources: Mapping[str, TensorSource]
) -> None:
    """A configuration that claims more than the files hold is refused before it is laid out."""
    claimed = config.parameter_count()[0]
    held = sum(source.values for source in sources.values())
    if claimed > 2 * held:  # within that, the missing tensors are named one by one
        raise WeightsError(
            f"{path}: the configuration describes {claimed:,} parameters, the files hold {held:,};"
            " tensors are missing or config.json belongs to another model"
        )


def _checked_slots(
    path: Path, model: CausalLM, sources: Mapping[str, TensorSource]
) -> dict[str, Slot]:
    """The tensors to read and their places, after every name and shape has been checked."""
    state = model.state_dict()
    wanted = checkpoint_slots(state, model.config)
    slots = {name: slot for name, slot in wanted.items() if not slot.is_copy}
    missing = [name for name in slots if name not in sources]
    if missing:
        raise WeightsError(f"{path}: lacks {_listed(missing)}; fetch the model again")
    surplus = [
        name for name in sources if name not in wanted and not is_known_surplus(name, model.config)
    ]
    if surplus:
        where = sources[surplus[0]].origin
        raise WeightsError(
            f"{where}: holds {_listed(surplus)}, which this configuration has no place for;"
            " config.json and weights belong to different models"
        )
    for name, slot in slots.items():
        shape = slot.shape(state[slot.parameter].shape)
        if sources[name].shape != shape:
            raise WeightsError(
                f"{sources[name].origin}: tensor {name} has the shape {sources[name].shape}, but"
                f" the configuration says {shape}"
            )
    return slots


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:_NAMED_IN_ERROR])
    more = len(names) - _NAMED_IN_ERROR
    return f"tensor {shown}" + (f" and {more:,} more" if more > 0 else "")


def _fill(
    model: CausalLM,
    slots: Mapping[str, Slot],
    sources: Mapping[str, TensorSource],
    device: torch.device,
    progress: Progress | None,
) -> None:
    state = model.state_dict()
    by_parameter: dict[str, list[str]] = {}
    for name, slot in slots.items():
        by_parameter.setdefault(slot.parameter, []).append(name)
    total = sum(state[parameter].nbytes for parameter in by_parameter)
    done = 0
    for parameter, names in by_parameter.items():
        wanted = state[parameter]
        tensor = torch.empty(wanted.shape, dtype=wanted.dtype, device=device)
        for name in names:
            part, source = slots[name].of(tensor), sources[name]
            step = source.rows_per_chunk
            for start in range(0, source.shape[0], step):
                rows = source.read(start, min(start + step, source.shape[0]))
                filled = part[start : start + step].copy_(rows)
                done += filled.nbytes
                if progress is not None:
                    progress(done, total)
        _place(model, parameter, tensor)


@contextmanager
def one_thread() -> Iterator[None]:
    """Copies of 1 MB gain nothing from threads, and lose tenfold where others hold the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a real tensor where the meta one was, parameter or buffer."""
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if leaf in owner._parameters:
        wants_grad = owner.get_parameter(leaf).requires_grad
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=wants_grad))
    else:
        setattr(owner, leaf, tensor)
