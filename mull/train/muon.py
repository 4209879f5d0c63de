"""Muon with its orthogonalisation in float32 and over stacks of matrices.

torch.optim.Muon goes through the matrices one by one in bfloat16. A processor without bfloat16
products (every x86 before AVX512-BF16 or AMX) does those at a hundredth of its float32 rate, and
even the others spend more on calling than on multiplying small matrices. Here matrices of one
shape go through Newton-Schulz together. Hyper-parameters and state are torch.optim.Muon's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """Muon (arXiv 2502.16982), its rate scaled by sqrt(max(1, rows / columns)) as at first.

    Parameters are matrices [rows, columns]. The work is float32 on a CPU, bfloat16 elsewhere.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, torch.device], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((parameter.shape, parameter.device), []).append(parameter)
            for (shape, _), parameters in alike.items():
                updates = orthogonalised(
                    self._directions(parameters, group),
                    group["ns_coefficients"],
                    group["ns_steps"],
                    group["eps"],
                )
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                if group["weight_decay"]:
                    torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                moves = [update.to(parameters[0].dtype) for update in updates.unbind()]
                torch._foreach_add_(parameters, moves, alpha=-rate)
        return loss

    def _directions(self, parameters: list[Tensor], group: dict[str, Any]) -> Tensor:
        """The momenta (looked ahead of, with Nesterov) after these gradients, stacked."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        if not group["nesterov"]:
            return torch.stack(momenta)
        return torch.stack(gradients).lerp_(torch.stack(momenta), group["momentum"])


def orthogonalised(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """`matrices` [n, rows, columns] with singular values brought near one, by the quintic
    Newton-Schulz iteration of Muon: X <- aX + (bA + cA²)X with A = XXᵀ."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(torch.float32 if matrices.device.type == "cpu" else torch.bfloat16)
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
