"""The two small parts every family shares: RMSNorm and the gated MLP.

What lies between products is done by native code where it can be (kernels/training.py), else by
torch: the two are differentiated by hand alike.

T tokens (packed, no padding) · D model · F hidden width
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mull.kernels import training


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv 1910.07467), reckoned in float32 whatever the input's type."""

    def __init__(
        self,
        width: int,
        eps: float,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        kind, dtype = x.device.type, torch.promote_types(x.dtype, self.weight.dtype)
        if torch.is_autocast_enabled(kind):
            # What comes next is a product in that type: cast once, not by each of them.
            dtype = torch.get_autocast_dtype(kind)
        if training.can_train(x, self.weight):
            native: Tensor = _NativeRmsNorm.apply(x, self.weight, self.eps)
            return native.to(dtype)
        normed: Tensor = _RmsNorm.apply(x, self.weight, self.eps, dtype)
        return normed


class _RmsNorm(torch.autograd.Function):
    """Differentiated by hand: autograd would keep and revisit four intermediate results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight_D, inverse)
        return ((wide * inverse).to(x.dtype) * weight_D).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """r = 1 / rms: r g w - r^3 mean(g w x) x for the input, sum of g x r for the weight."""
        x, weight_D, inverse = ctx.saved_tensors
        width = x.shape[-1]
        wide_TD, inverse_T1 = x.reshape(-1, width).to(inverse.dtype), inverse.view(-1, 1)
        upstream_TD = upstream.reshape(-1, width).to(inverse.dtype)
        product_TD = upstream_TD * wide_TD
        of_weight_D = None
        if ctx.needs_input_grad[1]:
            of_weight_D = torch.mv(product_TD.T, inverse_T1[:, 0]).to(weight_D.dtype)
        wide_weight_D = weight_D.to(inverse.dtype)
        share_T1 = torch.mv(product_TD, wide_weight_D)[:, None] * inverse_T1.pow(3) / -width
        of_x_TD = torch.mul(upstream_TD, wide_weight_D, out=product_TD).mul_(inverse_T1)
        of_x = of_x_TD.addcmul_(wide_TD, share_T1).view(x.shape).to(x.dtype)
        return of_x, of_weight_D, None, None


class _NativeRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        rows_SD = x.reshape(-1, x.shape[-1])
        normed_SD, inverse_S = training.norm(rows_SD, weight_D, eps)
        ctx.save_for_backward(rows_SD, weight_D, inverse_S)
        return normed_SD.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        rows_SD, weight_D, inverse_S = ctx.saved_tensors
        upstream_SD = upstream.reshape(rows_SD.shape)
        of_x_SD, of_weight_D = training.norm_backward(rows_SD, weight_D, inverse_S, upstream_SD)
        return of_x_SD.view(upstream.shape), of_weight_D, None


class _NativeGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        return training.gated(gate_TF, up_TF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_TF: Tensor) -> tuple[Tensor, Tensor]:
        gate_TF, up_TF = ctx.saved_tensors
        of_gate_TF, of_up_TF = torch.empty(2, *gate_TF.shape).unbind()
        training.gated_backward(gate_TF, up_TF, upstream_TF, of_gate_TF, of_up_TF)
        return of_gate_TF, of_up_TF


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(
        self,
        width: int,
        hidden_width: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden_width, bias=bias, device=device, dtype=dtype)
        self.up_proj = nn.Linear(width, hidden_width, bias=bias, device=device, dtype=dtype)
        self.down_proj = nn.Linear(hidden_width, width, bias=bias, device=device, dtype=dtype)

    def forward(self, x_TD: Tensor) -> Tensor:
        gate_TF, up_TF = self.gate_proj(x_TD), self.up_proj(x_TD)
        if training.can_train(gate_TF, up_TF) and gate_TF.ndim == 2:
            return self.down_proj(_NativeGated.apply(gate_TF, up_TF))
        return self.down_proj(F.silu(gate_TF) * up_TF)
