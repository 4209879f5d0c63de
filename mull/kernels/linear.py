"""Linear layers whose weights lie in memory as the native kernels read them.

`M rows · N outputs · K inputs`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mull.errors import KernelError
from mull.kernels import reference


class PackedLinear(nn.Module):
    """float32 rows in, float32 rows out; weights float32 or bfloat16; inference only."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.bfloat16):
            raise KernelError(f"packed weights are float32 or bfloat16, not {dtype}")
        self.out_features, self.in_features = weight_NK.shape
        self.dtype = dtype
        self.weight: Tensor
        self.register_buffer("weight", weight_NK.detach().to(dtype), persistent=False)
        self.bias: Tensor | None
        bias = None if bias_N is None else bias_N.detach().float()
        self.register_buffer("bias", bias, persistent=False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, dtype: torch.dtype) -> PackedLinear:
        return cls(linear.weight, linear.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] float32."""
        return reference.linear(x, self.weight, self.bias)

    def rows(self, ids: Tensor) -> Tensor:
        """Weight rows [..., K] float32: the embedding of tied models."""
        return self.weight[ids].float()
