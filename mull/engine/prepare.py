"""Turns a freshly loaded model into the one the engine runs: its precision, and native layers.

Inference only, in place, one tensor at a time: memory peaks at the model plus one tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mull import kernels
from mull.engine.fused import FusedLayer, FusedLayers, can_fuse
from mull.errors import RequestError
from mull.kernels import PackedLinear
from mull.model.decoder import DecoderLayer
from mull.model.layers import RMSNorm
from mull.model.transformer import CausalLM

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# kv_b_proj is also read as a matrix: the absorbed form of MLA folds it into query and output.
_READ_AS_MATRIX = ("kv_b_proj",)


class PackedEmbedding(nn.Module):
    """Token embedding read out of the packed head of a model that ties the two."""

    def __init__(self, head: PackedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.head = head
        self.dtype = dtype

    def forward(self, ids_T: Tensor) -> Tensor:
        return self.head.rows(ids_T).to(self.dtype)


def prepare(model: CausalLM, *, precision: str, device: torch.device) -> CausalLM:
    """The same model in `precision` (fp32, bf16) on `device`, native layers where they can run.

    On the CPU every nn.Linear becomes a PackedLinear, and the layers of a grouped-query dense
    model become FusedLayers with a float32 residual. Elsewhere only dtype and device change.
    """
    dtype = PRECISIONS.get(precision)
    if dtype is None:
        raise RequestError(f"precision is {precision!r}: use one of {', '.join(PRECISIONS)}")
    model.requires_grad_(False).eval()
    if device.type != "cpu" or not kernels.native_available():
        _convert(model, dtype, device)
        return model
    residual = dtype
    if can_fuse(model.config):
        _fuse(model, dtype)
        residual = torch.float32
    _pack_head(model, dtype, residual)
    _pack_linears(model, dtype)
    _convert(model, dtype, device)
    return model


def _convert(model: CausalLM, dtype: torch.dtype, device: torch.device) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device=device, dtype=dtype)
    for buffer in model.buffers():
        # Their dtype has a meaning of its own: the router's selection bias is float32.
        buffer.data = buffer.data.to(device)


def _fuse(model: CausalLM, dtype: torch.dtype) -> None:
    decoder = model.model
    fused = []
    for index, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer)
        decoder.layers[index] = nn.Identity()
        fused.append(FusedLayer(layer, dtype))
    assert isinstance(decoder.norm, RMSNorm)
    decoder.layers = nn.ModuleList([FusedLayers(model.config, fused, decoder.norm)])
    decoder.norm = nn.Identity()  # type: ignore[assignment]


def _pack_head(model: CausalLM, dtype: torch.dtype, residual: torch.dtype) -> None:
    if model.config.tie_word_embeddings:
        # The embedding holds the same tensor: let go of it first, so that only one copy is left.
        model.model.embed_tokens = nn.Identity()  # type: ignore[assignment]
    head = PackedLinear(model.lm_head.weight, None, dtype, out_dtype=torch.float32)
    model.lm_head = head  # type: ignore[assignment]
    if model.config.tie_word_embeddings:
        embedding = PackedEmbedding(head, residual)
        model.model.embed_tokens = embedding  # type: ignore[assignment]


def _pack_linears(model: CausalLM, dtype: torch.dtype) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name not in _READ_AS_MATRIX:
                setattr(module, name, PackedLinear.from_linear(child, dtype))
