"""Turns a freshly loaded model into the one the engine runs: its precision, and native layers.

Inference only, in place, one tensor at a time. A model on the meta device becomes a skeleton, whose
tensors (`state_dict`) somebody fills from a file and then calls `bind`; with `fill` it is packed
module by module as its weights are read, so that memory peaks at the result and one module.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mull import kernels
from mull.engine.fused import FusedLayer, FusedLayers
from mull.engine.fused_decoder import FusedDecoder, PackedEmbedding
from mull.engine.fused_latent import FusedLatentLayer, FusedLatentLayers, FusedNextToken
from mull.engine.packing import Fill, already_filled, bind, take_packed
from mull.errors import RequestError
from mull.kernels import PackedLinear
from mull.model.decoder import DecoderLayer
from mull.model.layers import RMSNorm
from mull.model.mtp import NextTokenModule
from mull.model.transformer import CausalLM

# What is not packed (norms, routers, experts without a native layer) at each precision.
PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "q8": torch.bfloat16,
    "q4": torch.bfloat16,
}
QUANTISED = ("q8", "q4")
# kv_b_proj is also read as a matrix: the absorbed form of MLA folds it into query and output.
_READ_AS_MATRIX = ("kv_b_proj",)


def is_packed(precision: str, device: torch.device) -> bool:
    """Whether `prepare` packs; else it only changes dtype and device."""
    return device.type == "cpu" and (precision in QUANTISED or kernels.native_available())


def prepare(
    model: CausalLM, *, precision: str, device: torch.device, fill: Fill = already_filled
) -> CausalLM:
    """The same model in `precision` (one of PRECISIONS) on `device`, native layers where they run.

    On the CPU every nn.Linear becomes a PackedLinear (at q4 the head, and an embedding, is q8), and
    the decoder layers become FusedLayers, or FusedLatentLayers for latent attention with or without
    experts, with a float32 residual. Elsewhere only dtype and device change.
    """
    dtype = PRECISIONS.get(precision)
    if dtype is None:
        raise RequestError(f"precision is {precision!r}: use one of {', '.join(PRECISIONS)}")
    if precision in QUANTISED and device.type != "cpu":
        raise RequestError(f"precision {precision} runs on the CPU only: use bf16 on {device.type}")
    model.requires_grad_(False).eval()
    if is_packed(precision, device):
        if kernels.native_available() and (model.config.is_mla or not model.config.is_moe):
            _fuse(model, precision, fill)
        else:
            _pack_embedding_and_head(model, precision, dtype, fill)
            _pack_linears(model, precision, fill)
    _convert(model, dtype, device, fill)
    if not any(tensor.is_meta for tensor in model.state_dict().values()):
        bind(model)
    return model


def _convert(model: CausalLM, dtype: torch.dtype, device: torch.device, fill: Fill) -> None:
    """What is still plain, module by module."""
    for module in model.modules():
        fill(module)
        for parameter in module.parameters(recurse=False):
            parameter.data = _moved(parameter.data, device).to(dtype)
        for buffer in module.buffers(recurse=False):
            # Their dtype has a meaning of its own: the router's selection bias is float32.
            buffer.data = _moved(buffer.data, device)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor if tensor.is_meta else tensor.to(device)


def _fuse(model: CausalLM, kind: str, fill: Fill) -> None:
    decoder = model.model
    assert isinstance(decoder.norm, RMSNorm)
    stack: FusedLayers | FusedLatentLayers
    if model.config.is_mla:
        latent = [FusedLatentLayer(layer, kind, fill) for layer in _taken(decoder.layers)]
        stack = FusedLatentLayers(model.config, latent, decoder.norm, fill)
        for depth, module in enumerate(model.mtp):
            assert isinstance(module, NextTokenModule)
            model.mtp[depth] = FusedNextToken(model.config, module, depth, kind, fill)
    else:
        fused = [FusedLayer(layer, kind, fill) for layer in _taken(decoder.layers)]
        stack = FusedLayers(model.config, fused, decoder.norm, fill)
    embedding = _pack_embedding_and_head(model, kind, torch.float32, fill)
    model.model = FusedDecoder(embedding, stack, decoder.rope)  # type: ignore[assignment]


def _taken(layers: nn.ModuleList) -> Iterator[DecoderLayer]:
    """The layers one by one, no longer held by the list."""
    for index, layer in enumerate(layers):
        assert isinstance(layer, DecoderLayer)
        layers[index] = nn.Identity()
        yield layer


def _pack_embedding_and_head(
    model: CausalLM, precision: str, residual: torch.dtype, fill: Fill
) -> PackedEmbedding:
    # Four bits of the head alone cost more quality than of all layers together.
    kind = "q8" if precision == "q4" else precision
    decoder, tied = model.model, model.config.tie_word_embeddings
    rows: PackedLinear | None = None
    if not tied:
        fill(decoder.embed_tokens)
        rows = PackedLinear.pack(decoder.embed_tokens.weight, None, kind)
    # Tied, it holds the head's own tensor: let go of it first, so that only one copy is left.
    decoder.embed_tokens = nn.Identity()  # type: ignore[assignment]
    head = take_packed(model, ("lm_head",), kind, fill)
    head.out_dtype = torch.float32
    model.lm_head = head  # type: ignore[assignment]
    embedding = PackedEmbedding(head if rows is None else rows, residual)
    decoder.embed_tokens = embedding  # type: ignore[assignment]
    return embedding


def _pack_linears(model: CausalLM, kind: str, fill: Fill) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name not in _READ_AS_MATRIX:
                setattr(module, name, take_packed(module, (name,), kind, fill))
