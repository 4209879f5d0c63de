"""Linear layers whose weights lie in memory as the native kernels read them.

`M rows · N outputs · K inputs`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from mull.errors import KernelError
from mull.kernels import library, reference

_PANEL = 16  # outputs interleaved, see native/abi.h


class PackedLinear(nn.Module):
    """Inference only. Weights float32 or bfloat16, sums in float32.

    With bfloat16 weights the activations are rounded to bfloat16 inside the product. Every row's
    result is the same to the last bit whatever other rows it is computed with.
    """

    def __init__(
        self,
        weight_NK: Tensor,
        bias_N: Tensor | None,
        dtype: torch.dtype,
        *,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dtype not in library.KINDS:
            raise KernelError(f"packed weights are float32 or bfloat16, not {dtype}")
        self.out_features, self.in_features = weight_NK.shape
        self.dtype = dtype
        self.out_dtype = out_dtype
        self.bias: Tensor | None
        weight_NK = weight_NK.detach().to(dtype).contiguous()
        bias = None if bias_N is None else bias_N.detach().float().contiguous()
        self.register_buffer("bias", bias, persistent=False)
        self.native = library.Linear(
            bias=None if bias is None else bias.data_ptr(),
            n=self.out_features,
            k=self.in_features,
            kind=library.KINDS[dtype],
        )
        self.packed = nn.Parameter(self._pack(weight_NK), requires_grad=False)
        self.native.packed = self.packed.data_ptr()

    def _pack(self, weight_NK: Tensor) -> Tensor:
        lib = library.library()
        if lib is None:
            return weight_NK
        panels = -(-self.out_features // _PANEL)
        depth = self.in_features
        if self.dtype == torch.bfloat16:
            depth += depth % 2
        packed = torch.empty(panels * depth * _PANEL, dtype=self.dtype)
        lib.mull_pack(
            ctypes.byref(self.native), weight_NK.data_ptr(), packed.data_ptr(), library.threads()
        )
        return packed

    @classmethod
    def from_linear(cls, linear: nn.Linear, dtype: torch.dtype) -> PackedLinear:
        return cls(linear.weight, linear.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in `out_dtype`, else in the dtype of x."""
        if x.shape[-1] != self.in_features:
            raise KernelError(
                f"a linear layer of {self.in_features} inputs was given rows of {x.shape[-1]}"
            )
        out_dtype = self.out_dtype or x.dtype
        lib = library.library()
        if lib is None:
            return reference.linear(x, self.packed, self.bias).to(out_dtype)
        rows = x.float().contiguous()
        y = torch.empty((*x.shape[:-1], self.out_features), dtype=torch.float32)
        count = rows.numel() // self.in_features
        library.check(
            lib.mull_linear(
                ctypes.byref(self.native),
                rows.data_ptr(),
                count,
                y.data_ptr(),
                library.threads(),
            )
        )
        return y.to(out_dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """Weight rows [..., K] float32: the embedding of models that tie it to the head."""
        lib = library.library()
        if lib is None:
            return self.packed[ids].float()
        ids = ids.long().contiguous()
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.out_features:
            raise KernelError(f"a token id lies outside the vocabulary of {self.out_features}")
        out = torch.empty((*ids.shape, self.in_features), dtype=torch.float32)
        lib.mull_rows(ctypes.byref(self.native), ids.data_ptr(), ids.numel(), out.data_ptr())
        return out

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, dtype={self.dtype}"
