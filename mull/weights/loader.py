"""From files to a CausalLM: every tensor accounted for, each copied once into its final place.

The model is laid out on the meta device first, so that names and shapes are checked before a byte
is allocated; then each parameter is made in its final dtype and filled a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mull.errors import WeightsError
from mull.model.checkpoint_names import Slot, checkpoint_slots, is_known_surplus
from mull.model.config import ModelConfig
from mull.model.mtp import NextTokenModule
from mull.model.transformer import CausalLM
from mull.weights.files import ModelFiles
from mull.weights.opened import OpenedModel
from mull.weights.tensor_source import TensorSource

Progress = Callable[[int, int], None]
_NAMED_IN_ERROR = 3


def load_config(files: ModelFiles) -> ModelConfig:
    """The model's shape, from config.json or GGUF metadata. Raises WeightsError or ModelError."""
    return OpenedModel(files).config


def tokenizer_source(files: ModelFiles) -> Path | dict[str, Any]:
    """What text/ makes a tokenizer of: the folder (it has a tokenizer.json), or GGUF metadata."""
    return OpenedModel(files).tokenizer_source


def load_model(
    files: ModelFiles | OpenedModel,
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
    opened = files if isinstance(files, OpenedModel) else OpenedModel(files)
    model, fill = lay_out(opened, dtype=dtype, device=device, progress=progress, mtp=mtp)
    for module in model.modules():
        fill(module)
    model.tie_weights()
    return model.eval()


def lay_out(
    opened: OpenedModel,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    mtp: bool = False,
) -> tuple[CausalLM, Filler]:
    """The empty model, and what fills it module by module, in any order; as `load_model`."""
    _refuse_impossible(opened)
    model = empty_model(opened.config, dtype=dtype, mtp=mtp)
    return model, Filler(opened, model, device=device, progress=progress)


def empty_model(
    config: ModelConfig, *, dtype: torch.dtype | None = None, mtp: bool = False
) -> CausalLM:
    """The model's modules on the meta device: names, shapes and dtypes, no memory."""
    with _NoRandomNumbers():
        return CausalLM(config, mtp=mtp, device="meta", dtype=dtype or _own_dtype(config))


def open_checked(files: ModelFiles) -> tuple[ModelConfig, dict[str, TensorSource]]:
    """The shape and every tensor still in its file, names and shapes checked; MTP left out.

    Raises WeightsError, as `load_model` does, which reads the same tensors.
    """
    opened = OpenedModel(files)
    _refuse_impossible(opened)
    slots = _checked_slots(opened.path, empty_model(opened.config), opened.sources)
    return opened.config, {name: opened.sources[name] for name in slots}


def holds_mtp(files: ModelFiles | OpenedModel) -> bool:
    """Whether the files hold whole multi-token-prediction modules, which `load_model` loads on
    demand."""
    opened = files if isinstance(files, OpenedModel) else OpenedModel(files)
    config = opened.config
    if not config.has_mtp:
        return False
    with _NoRandomNumbers():
        modules = [
            NextTokenModule(config, depth, device="meta")
            for depth in range(config.num_nextn_predict_layers)
        ]
    parts = [f"mtp.{depth}.{name}" for depth, m in enumerate(modules) for name in m.state_dict()]
    slots = checkpoint_slots(parts, config)
    return all(slot.is_copy or name in opened.sources for name, slot in slots.items())


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


def _refuse_impossible(opened: OpenedModel) -> None:
    """A configuration that claims more than the files hold is refused before it is laid out."""
    claimed = opened.config.parameter_count()[0]
    held = sum(source.values for source in opened.sources.values())
    if claimed > 2 * held:  # within that, the missing tensors are named one by one
        raise WeightsError(
            f"{opened.path}: the configuration describes {claimed:,} parameters, the files hold"
            f" {held:,}; tensors are missing or config.json belongs to another model"
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


class Filler:
    """Called with a module of an empty model, gives its own tensors memory and the files' content.

    The modules may be called in any order and have been moved about since; a tensor that two of
    them share is read for the first, and the second keeps its empty one.
    """

    def __init__(
        self,
        opened: OpenedModel,
        model: CausalLM,
        *,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        self._slots = _checked_slots(opened.path, model, opened.sources)
        self._sources, self._device, self._progress = opened.sources, device, progress
        self._names: dict[str, list[str]] = {}
        for name, slot in self._slots.items():
            self._names.setdefault(slot.parameter, []).append(name)
        state = model.state_dict(keep_vars=True)
        # By identity: fused layers take modules apart, and names say nothing any more. The tensors
        # are held, so that none of their ids is given to another.
        self._empty = {id(state[name]): (name, state[name]) for name in self._names}
        self._total = sum(tensor.nbytes for _name, tensor in self._empty.values())
        self._done = 0

    def __call__(self, module: nn.Module) -> None:
        for leaf, empty in [*module._parameters.items(), *module._buffers.items()]:
            if id(empty) not in self._empty:
                continue
            parameter, wanted = self._empty.pop(id(empty))
            with one_thread():
                filled = self._read(parameter, wanted)
            if leaf in module._parameters:
                filled = nn.Parameter(filled, requires_grad=wanted.requires_grad)
            setattr(module, leaf, filled)

    def _read(self, parameter: str, wanted: Tensor) -> Tensor:
        tensor = torch.empty(wanted.shape, dtype=wanted.dtype, device=self._device)
        for name in self._names[parameter]:
            part, source = self._slots[name].of(tensor), self._sources[name]
            step = source.rows_per_chunk
            for start in range(0, source.shape[0], step):
                rows = source.read(start, min(start + step, source.shape[0]))
                self._done += part[start : start + step].copy_(rows).nbytes
                if self._progress is not None:
                    self._progress(self._done, self._total)
        return tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Copies of 1 MB gain nothing from threads, and lose tenfold where others hold the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
