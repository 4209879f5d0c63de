"""Taking a model's modules apart into packed ones: what every fused layer is made with.

A fused layer is a module whose children are PackedLinears and whose other tensors are buffers, so
that `state_dict()` names all it holds; its `bind()` builds the native structs from the tensors as
they are then. Made of modules on the meta device it is a skeleton: sizes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mull.kernels import PackedLinear
from mull.model.layers import RMSNorm

# Gives the tensors of a module on the meta device memory and content, just before it is packed.
Fill = Callable[[nn.Module], None]


@runtime_checkable
class Binds(Protocol):
    """A module that keeps native structs of its tensors' addresses."""

    def bind(self) -> None: ...


def already_filled(module: nn.Module) -> None:
    """The Fill of a model that holds its weights, and of a skeleton that is to stay empty."""


def take_packed(
    module: nn.Module, names: Sequence[str], kind: str, fill: Fill = already_filled
) -> PackedLinear:
    """The named linear layers packed as one, their outputs one after the other.

    `module` lets go of them, so that each original is freed as soon as its packed copy exists.
    """
    linears: list[nn.Linear] = [getattr(module, name) for name in names]
    for name, linear in zip(names, linears, strict=True):
        fill(linear)
        delattr(module, name)
    if len(linears) == 1:
        return PackedLinear.from_linear(linears[0], kind)
    has_bias = any(linear.bias is not None for linear in linears)
    if linears[0].weight.is_meta:
        # By arithmetic: for torch.cat on the meta device torch imports its compiler, two seconds.
        inputs, outputs = linears[0].in_features, sum(linear.out_features for linear in linears)
        return PackedLinear(inputs, outputs, kind, bias=has_bias, device="meta")
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if not has_bias:
        return PackedLinear.pack(weight, None, kind)
    biases = [
        torch.zeros_like(linear.weight[:, 0]) if linear.bias is None else linear.bias.detach()
        for linear in linears
    ]
    return PackedLinear.pack(weight, torch.cat(biases), kind)


def norm_weight(norm: nn.Module, fill: Fill = already_filled) -> Tensor | None:
    """float32 weight of a norm, None for a layer that has none."""
    if not isinstance(norm, RMSNorm):
        return None
    fill(norm)
    return norm.weight.detach().float().contiguous()


def address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def bind(model: nn.Module) -> None:
    """Bind every packed and fused module of a model that is filled, inner ones first."""
    for module in reversed(list(model.modules())):
        if isinstance(module, Binds):
            module.bind()
