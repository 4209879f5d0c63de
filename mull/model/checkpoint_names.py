"""Which checkpoint tensor fills which part of which module tensor: all that differs between them.

Names are equal except in two places. A checkpoint holds each expert's three matrices by themselves,
the module stacks them; and MTP modules are `mtp.K.*` here, `model.layers.{L + K}.*` there, with
their own copies of embedding and head that the module shares instead.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from mull.model.config import ModelConfig

_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)")
_MTP = re.compile(r"mtp\.(\d{1,6})\.(.+)")
_EXPERT = re.compile(r"(.+\.mlp\.experts\.)(\d{1,6})\.(gate|up|down)_proj\.weight")
_STACKED = re.compile(r"(.+\.mlp\.experts\.)(gate_up|down)_proj")
# Rows of a stacked gate_up_proj: the gate's come first.
_HALVES = {"gate": 0, "up": 1}
_MTP_COPIES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "shared_head.head.weight": "lm_head.weight",
}


@dataclass(frozen=True)
class Slot:
    """The part of one module tensor that one checkpoint tensor fills."""

    parameter: str  # a key of CausalLM.state_dict()
    expert: int | None = None
    half: int | None = None  # 0: the first half of the rows, 1: the second
    is_copy: bool = False  # an MTP module's own copy of embedding or head; may be absent

    def of(self, tensor: Tensor) -> Tensor:
        """The view of the module's tensor to read from or write to."""
        part = tensor if self.expert is None else tensor[self.expert]
        return part if self.half is None else part.chunk(2)[self.half]

    def shape(self, whole: Iterable[int]) -> tuple[int, ...]:
        """The checkpoint tensor's shape, given the module tensor's."""
        sizes = tuple(whole)
        if self.expert is not None:
            sizes = sizes[1:]
        return sizes if self.half is None else (sizes[0] // 2, *sizes[1:])


def slot_for(checkpoint_name: str, config: ModelConfig) -> Slot | None:
    """Where a tensor of a checkpoint belongs; None if no module of this config has a place for it.

    Whether `Slot.parameter` exists in a model at hand (built without MTP, say), the caller sees.
    """
    name, is_copy = _from_checkpoint(checkpoint_name, config)
    if name is None:
        return None
    expert = _EXPERT.fullmatch(name)
    if expert is None:
        # Stacked tensors are a module's own; in a file they would be read as whatever they hold.
        return None if _STACKED.fullmatch(name) else Slot(name, is_copy=is_copy)
    prefix, index, kind = expert[1], int(expert[2]), expert[3]
    if index >= config.n_routed_experts:
        return None
    if kind == "down":
        return Slot(prefix + "down_proj", index)
    return Slot(prefix + "gate_up_proj", index, _HALVES[kind])


def checkpoint_slots(parameters: Iterable[str], config: ModelConfig) -> dict[str, Slot]:
    """Every tensor that a checkpoint of these module tensors holds, in their order.

    `parameters`: the keys of CausalLM.state_dict(). A tied head is left out, as it is in files.
    """
    slots: dict[str, Slot] = {}
    depths: dict[int, None] = {}
    for parameter in parameters:
        if parameter == "lm_head.weight" and config.tie_word_embeddings:
            continue
        mtp = _MTP.fullmatch(parameter)
        name = parameter
        if mtp is not None:
            depths[int(mtp[1])] = None
            name = f"model.layers.{config.num_hidden_layers + int(mtp[1])}.{mtp[2]}"
        slots.update(_unstacked(name, parameter, config))
    for depth in depths:
        for copy, original in _MTP_COPIES.items():
            name = f"model.layers.{config.num_hidden_layers + depth}.{copy}"
            slots[name] = Slot(original, is_copy=True)
    return slots


def is_known_surplus(checkpoint_name: str, config: ModelConfig) -> bool:
    """Tensors that published files hold and a model may do without: neither missing nor wrong.

    They are RoPE frequencies of old exports, the head of a tied model, and MTP modules, which are
    built only on demand.
    """
    if checkpoint_name.endswith("rotary_emb.inv_freq"):
        return True
    if checkpoint_name == "lm_head.weight":
        return config.tie_word_embeddings
    layer = _LAYER.fullmatch(checkpoint_name)
    return layer is not None and _mtp_depth(int(layer[1]), config) is not None


def _mtp_depth(layer: int, config: ModelConfig) -> int | None:
    depth = layer - config.num_hidden_layers
    return depth if 0 <= depth < config.num_nextn_predict_layers else None


def _from_checkpoint(name: str, config: ModelConfig) -> tuple[str | None, bool]:
    """(module name with experts still apart, is it a copy of a shared tensor)."""
    layer = _LAYER.fullmatch(name)
    if layer is None or int(layer[1]) < config.num_hidden_layers:
        return (None if name.startswith("mtp.") else name), False
    depth = _mtp_depth(int(layer[1]), config)
    if depth is None:
        return None, False
    if layer[2] in _MTP_COPIES:
        return _MTP_COPIES[layer[2]], True
    return f"mtp.{depth}.{layer[2]}", False


def _unstacked(name: str, parameter: str, config: ModelConfig) -> dict[str, Slot]:
    stacked = _STACKED.fullmatch(name)
    if stacked is None:
        return {name: Slot(parameter)}
    prefix, experts = stacked[1], range(config.n_routed_experts)
    if stacked[2] == "down":
        return {f"{prefix}{e}.down_proj.weight": Slot(parameter, e) for e in experts}
    return {
        f"{prefix}{e}.{kind}_proj.weight": Slot(parameter, e, half)
        for e in experts
        for kind, half in _HALVES.items()
    }
