"""Linear layers whose weights lie in memory as the native kernels read them.

`M rows · N outputs · K inputs`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from mull.errors import KernelError
from mull.kernels import library, reference
from mull.kernels.layout import KINDS, packed_bytes

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PackedLinear(nn.Module):
    """Inference only; sums in float32. Every row's result is the same to the last bit whatever
    other rows it is computed with.

    kind "fp32", "bf16" (activations rounded to bfloat16 inside the product), "q8" or "q4" (weights
    of 8 or 4 bits, activations quantised to 8 bits per group of 32). Comes into being in three
    steps: the skeleton (sizes only), its tensors filled by `pack` or from a file, and `bind`, which
    hands their addresses to the native code and must follow every change of them.

    Without native code `packed` is the plain weight [N, K], dequantised to float32 for q8 and q4.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kind: str,
        *,
        bias: bool = False,
        out_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise KernelError(f"packed weights are one of {', '.join(KINDS)}, not {kind!r}")
        self.in_features, self.out_features, self.kind = in_features, out_features, kind
        self.out_dtype = out_dtype
        if library.native_available():
            size = packed_bytes(out_features, in_features, kind)
            packed = torch.empty(size, dtype=torch.uint8, device=device)
        else:
            dtype = _DTYPES.get(kind, torch.float32)
            packed = torch.empty(out_features, in_features, dtype=dtype, device=device)
        self.register_buffer("packed", packed)
        self.register_buffer("bias", torch.empty(out_features, device=device) if bias else None)
        self._native: library.Linear | None = None

    @classmethod
    def pack(
        cls,
        weight_NK: Tensor,
        bias_N: Tensor | None,
        kind: str,
        *,
        out_dtype: torch.dtype | None = None,
    ) -> PackedLinear:
        """Filled with these weights and bound; a skeleton when they are on the meta device."""
        outputs, inputs = weight_NK.shape
        linear = cls(
            inputs,
            outputs,
            kind,
            bias=bias_N is not None,
            out_dtype=out_dtype,
            device="meta" if weight_NK.is_meta else None,
        )
        if not weight_NK.is_meta:
            linear.fill(weight_NK, bias_N)
        return linear

    @classmethod
    def from_linear(cls, linear: nn.Linear, kind: str) -> PackedLinear:
        return cls.pack(linear.weight, linear.bias, kind)

    def fill(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        """Pack the weights into this layer's own tensors, and bind."""
        if self.bias is not None:
            assert bias_N is not None
            self.bias.copy_(bias_N.detach())
        self.fill_rows(0, weight_NK)
        self.bind()

    def fill_rows(self, first: int, weight_NK: Tensor) -> None:
        """Pack the weights of outputs `first` (a multiple of PANEL) and following."""
        # Quantised from float32: rounding to bfloat16 first would lose a bit of every weight.
        weight_NK = weight_NK.detach().to(_DTYPES.get(self.kind, torch.float32)).contiguous()
        outputs, inputs = weight_NK.shape
        lib = library.library()
        if lib is None:
            if self.is_quantised:
                weight_NK = reference.quantised_weights(weight_NK, self.kind)
            self.packed[first : first + outputs].copy_(weight_NK)
            return
        part = library.Linear(n=outputs, k=inputs, kind=KINDS[self.kind])
        target = self.packed.data_ptr() + packed_bytes(first, inputs, self.kind)
        lib.mull_pack(ctypes.byref(part), weight_NK.data_ptr(), target, library.threads())

    def bind(self) -> None:
        """Build the native struct anew from the tensors as they are now."""
        if self.packed.is_meta:
            raise KernelError("a packed layer must be filled before it is bound")
        self._native = library.Linear(
            packed=self.packed.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
            n=self.out_features,
            k=self.in_features,
            kind=KINDS[self.kind],
        )

    @property
    def is_quantised(self) -> bool:
        return self.kind in ("q8", "q4")

    @property
    def native(self) -> library.Linear:
        """The struct the native code reads; layers that combine several copy it."""
        if self._native is None:
            raise KernelError("a packed layer was used before it was filled and bound")
        return self._native

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in `out_dtype`, else in the dtype of x."""
        if x.shape[-1] != self.in_features:
            raise KernelError(
                f"a linear layer of {self.in_features} inputs was given rows of {x.shape[-1]}"
            )
        out_dtype = self.out_dtype or x.dtype
        lib = library.library()
        if lib is None:
            if self.is_quantised:
                x = reference.quantised_activations(x)
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
        known = ids.numpy()  # small, where numpy takes less time than torch
        if known.size and not 0 <= known.min() <= known.max() < self.out_features:
            raise KernelError(f"a token id lies outside the vocabulary of {self.out_features}")
        out = torch.empty((*ids.shape, self.in_features), dtype=torch.float32)
        lib.mull_rows(ctypes.byref(self.native), ids.data_ptr(), ids.numel(), out.data_ptr())
        return out

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.kind}"
