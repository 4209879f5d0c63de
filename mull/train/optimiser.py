"""AdamW and Muon over a model's parameters, the schedule, and their state by parameter name.

AdamW is torch.optim's; Muon (arXiv 2502.16982) is too, but for its arithmetic (mull.train.muon).
It knows two-dimensional parameters only, so that a stack of experts [E, rows, columns] is handed
to it as E matrices that share the stack's memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mull.errors import TrainError
from mull.train.muon import Muon
from mull.train.recipe_parts import Optimiser

# What Muon is not for: tables of tokens, the router's few rows, low-rank adapters.
_NOT_MUON = re.compile(r"embed_tokens|lm_head|\.gate\.weight$|\.lora_[ab]$")
_NOT_DECAYED = re.compile(r"embed_tokens|lm_head")


def rate_factor(spec: Optimiser, step: int, total_steps: int) -> float:
    """What the learning rate is multiplied with at `step` (from 0) of `total_steps`.

    Rises linearly over `warmup` steps, stays at 1, and falls to `final` over the last `decay` part.
    """
    rise = min(1.0, (step + 1) / (spec.warmup + 1))
    fall_steps = spec.decay * total_steps
    if spec.schedule == "constant" or fall_steps <= 0:
        return rise
    done = min(1.0, max(0.0, (step + 1 - (total_steps - fall_steps)) / fall_steps))
    if spec.schedule == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return rise * (1 - (1 - spec.final) * done)


class Updater:
    """Moves the trainable ones of `parameters`; a step is a pure function of gradient and state."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        spec: Optimiser,
        total_steps: int,
    ) -> None:
        self.spec, self.total_steps, self.step_index = spec, total_steps, 0
        self.parameters = {name: p for name, p in parameters if p.requires_grad}
        if not self.parameters:
            raise TrainError("nothing to train: no parameter of the model takes a gradient")
        muon = {name: p for name, p in self.parameters.items() if _is_muons(spec, name, p)}
        rest = {name: p for name, p in self.parameters.items() if name not in muon}
        self._slices = {
            f"{name}[{index}]": (name, index)
            for name, p in muon.items()
            if p.ndim == 3
            for index in range(len(p))
        }
        self._moved: dict[str, nn.Parameter] = {
            **rest,
            **{name: p for name, p in muon.items() if p.ndim == 2},
            **{
                key: nn.Parameter(self.parameters[name].data[index])
                for key, (name, index) in self._slices.items()
            },
        }
        matrices = [p for name, p in self._moved.items() if name not in rest]
        self._optimisers: list[torch.optim.Optimizer] = []
        if matrices:
            self._optimisers.append(
                Muon(
                    matrices,
                    lr=spec.learning_rate,
                    weight_decay=spec.weight_decay,
                    momentum=spec.momentum,
                )
            )
        if rest:
            self._optimisers.append(_adamw(rest, spec, beside_muon=bool(matrices)))
        self._heights = [[group["lr"] for group in o.param_groups] for o in self._optimisers]

    @property
    def rate(self) -> float:
        """The learning rate of the next step (the matrices' where Muon moves them)."""
        return self.spec.learning_rate * rate_factor(self.spec, self.step_index, self.total_steps)

    @torch.no_grad()
    def step(self) -> None:
        """Moves the weights along their `grad`s and goes on in the schedule."""
        factor = rate_factor(self.spec, self.step_index, self.total_steps)
        for key, (name, index) in self._slices.items():
            gradient = self.parameters[name].grad
            self._moved[key].grad = None if gradient is None else gradient[index]
        for optimiser, heights in zip(self._optimisers, self._heights, strict=True):
            for group, height in zip(optimiser.param_groups, heights, strict=True):
                group["lr"] = height * factor
            optimiser.step()
        self.step_index += 1

    def skip(self) -> None:
        """Goes on in the schedule without moving anything."""
        self.step_index += 1

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None
        for key in self._slices:
            self._moved[key].grad = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, json-able rest). The tensors are the live ones: save them before a step."""
        tensors = {
            f"{name}/{part}": value
            for name, parameter in self._moved.items()
            for part, value in self._state_of(parameter).items()
        }
        return tensors, {"step": self.step_index, "optimiser": self.spec.name}

    def load_state(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        """What `state` gave, exactly. Raises TrainError where it is of other parameters."""
        if rest.get("optimiser") != self.spec.name:
            raise TrainError(
                f"the saved optimiser is {rest.get('optimiser')!r}, the recipe's is "
                f"{self.spec.name!r}: go on with the recipe the run began with"
            )
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("/")
            found.setdefault(name, {})[part] = tensor
        if found and found.keys() - self._moved.keys():
            strange = min(found.keys() - self._moved.keys())
            raise TrainError(f"the saved optimiser moves {strange!r}, which this model lacks")
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    optimiser.state.pop(parameter, None)
        for name, parts in found.items():
            parameter = self._moved[name]
            for part, tensor in parts.items():
                if part != "step" and tensor.shape != parameter.shape:
                    raise TrainError(
                        f"the saved optimiser's {name}/{part} is {list(tensor.shape)}, "
                        f"the parameter {list(parameter.shape)}"
                    )
            self._owner(parameter).state[parameter] = {
                part: tensor.detach().clone() for part, tensor in parts.items()
            }
        self.step_index = int(rest["step"])

    def _owner(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                if any(each is parameter for each in group["params"]):
                    return optimiser
        raise AssertionError("every moved parameter belongs to an optimiser")

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        for optimiser in self._optimisers:
            if parameter in optimiser.state:
                return dict(optimiser.state[parameter])
        return {}


def _is_muons(spec: Optimiser, name: str, parameter: nn.Parameter) -> bool:
    return spec.name == "muon" and parameter.ndim >= 2 and not _NOT_MUON.search(name)


def _adamw(
    parameters: Mapping[str, nn.Parameter], spec: Optimiser, *, beside_muon: bool
) -> torch.optim.AdamW:
    decayed = {n for n, p in parameters.items() if p.ndim >= 2 and not _NOT_DECAYED.search(n)}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in parameters.items() if n in decayed]},
        {"params": [p for n, p in parameters.items() if n not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=spec.adamw_learning_rate if beside_muon else spec.learning_rate,
        betas=spec.betas,
        weight_decay=spec.weight_decay,
        fused=True,
    )
