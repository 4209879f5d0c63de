"""Low-rank adapters (LoRA, arXiv 2106.09685): W x + (alpha / rank) B (A x), only A and B learn.

An adapted layer keeps its weight under its name, so that the model's own tensors are where they
were; A and B stand beside it. B begins as zeros: nothing changes before the first step.

D input width · O output width · R rank
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mull.errors import RecipeError, TrainError
from mull.model import CausalLM
from mull.train.recipe_parts import Lora


class LoraLinear(nn.Linear):
    """A linear layer whose weight stands still; lora_a [R, D], lora_b [O, R] in float32."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, draw: torch.Generator) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale = alpha / rank
        device = base.weight.device
        a_RD = torch.randn(rank, base.in_features, generator=draw) / base.in_features**0.5
        self.lora_a = nn.Parameter(a_RD.to(device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.linear(x.to(self.lora_a.dtype), self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + (self.scale * low).to(x.dtype)

    def merged_weight(self) -> Tensor:
        """What a plain layer of the same function holds, in the weight's own type."""
        change_OD = self.scale * (self.lora_b @ self.lora_a)
        return (self.weight.float() + change_OD).to(self.weight.dtype)


def inject(model: CausalLM, spec: Lora, *, seed: int = 0) -> list[str]:
    """Adapts, in place, every linear layer with one of the spec's names (without names: every
    projection); nothing else learns.

    Returns their full names. Raises RecipeError as `meant` does.
    """
    found = meant(model, spec)
    model.requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    for name, linear in found.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, LoraLinear(linear, spec.rank, spec.alpha, draw))
    return list(found)


def meant(model: CausalLM, spec: Lora) -> dict[str, nn.Linear]:
    """The layers that a spec adapts, by full name. Raises RecipeError for a name that none bears:
    experts are stacks, and of the head losses take the weight alone."""
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    known = sorted({name.rpartition(".")[2] for name in linear})
    if missing := [layer for layer in spec.layers if layer not in known]:
        raise RecipeError(
            f"lora.layers names {missing[0]!r}, but the layers that can have adapters are "
            f"{', '.join(known)}"
        )
    wanted = spec.layers or [layer for layer in known if "_proj" in layer]
    return {name: layer for name, layer in linear.items() if name.rpartition(".")[2] in wanted}


def adapters(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


@torch.no_grad()
def merged_state(model: CausalLM) -> dict[str, Tensor]:
    """The state dict of a model without adapters that computes the same: for export."""
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith((".lora_a", ".lora_b"))
    }
    state.update({f"{name}.weight": layer.merged_weight() for name, layer in adapters(model)})
    return state


def adapter_state(model: CausalLM) -> dict[str, Tensor]:
    """A and B of every adapted layer, by name."""
    return {
        f"{name}.{part}": getattr(layer, part).detach()
        for name, layer in adapters(model)
        for part in ("lora_a", "lora_b")
    }


@torch.no_grad()
def load_adapter_state(model: CausalLM, tensors: Mapping[str, Tensor]) -> None:
    """What `adapter_state` gave. Raises TrainError where it is of another model or rank."""
    own = adapter_state(model)
    if strange := sorted(own.keys() ^ tensors.keys()):
        raise TrainError(f"the adapters do not fit the model: {strange[0]!r} is in one only")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise TrainError(
                f"adapter {name} is {list(tensor.shape)}, here {list(own[name].shape)}"
            )
        own[name].copy_(tensor)
