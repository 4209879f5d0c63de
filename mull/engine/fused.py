"""All decoder layers of a grouped-query, dense model as one module that runs in native code.

One call computes embedding, every layer and the final norm on the paged cache. With any other
Sequences it computes the halves of each layer natively and leaves the attention between them to
`seqs.attend`.
`T new tokens (packed) · H query heads · G key heads · d head width · D model`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from mull.engine.native_step import (
    NativeStep,
    native_library,
    native_step,
    point_to_cache,
    tables_of,
)
from mull.engine.packing import Fill, address, already_filled, norm_weight, take_packed
from mull.engine.paged import PagedSequences
from mull.errors import KernelError
from mull.kernels import PackedLinear, library
from mull.model.attention import Attention
from mull.model.config import ModelConfig
from mull.model.decoder import DecoderLayer
from mull.model.layers import GatedMLP, RMSNorm
from mull.model.rope import Rope
from mull.model.sequences import Sequences


class FusedLayer(nn.Module):
    """One decoder layer's packed weights. Takes the originals apart: each tensor is dropped as soon
    as its packed copy exists. fill: see prepare."""

    input_norm: Tensor
    post_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None

    def __init__(self, layer: DecoderLayer, kind: str, fill: Fill = already_filled) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        assert isinstance(attention, Attention)
        assert isinstance(mlp, GatedMLP)
        norms = {
            "input_norm": layer.input_layernorm,
            "post_norm": layer.post_attention_layernorm,
            "q_norm": attention.q_norm,
            "k_norm": attention.k_norm,
        }
        for name, norm in norms.items():
            self.register_buffer(name, norm_weight(norm, fill))
        self.qkv = take_packed(attention, ("q_proj", "k_proj", "v_proj"), kind, fill)
        self.out = take_packed(attention, ("o_proj",), kind, fill)
        self.gate = take_packed(mlp, ("gate_proj",), kind, fill)
        self.up = take_packed(mlp, ("up_proj",), kind, fill)
        self.down = take_packed(mlp, ("down_proj",), kind, fill)

    def native(self) -> library.Layer:
        """Of this layer's tensors as they are bound now."""
        return library.Layer(
            input_norm=address(self.input_norm),
            post_norm=address(self.post_norm),
            q_norm=address(self.q_norm),
            k_norm=address(self.k_norm),
            qkv=self.qkv.native,
            out=self.out.native,
            gate=self.gate.native,
            up=self.up.native,
            down=self.down.native,
        )


class FusedLayers(nn.Module):
    """Every layer and the final norm. The residual is float32."""

    final_norm: Tensor

    def __init__(
        self,
        config: ModelConfig,
        layers: list[FusedLayer],
        norm: RMSNorm,
        fill: Fill = already_filled,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.register_buffer("final_norm", norm_weight(norm, fill))
        self.hidden, self.eps = config.hidden_size, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self._stack: library.Stack | None = None

    def bind(self) -> None:
        """Hand the tensors' addresses to the native code; after the packed layers' own `bind`."""
        structs = [layer.native() for layer in self.layers]  # type: ignore[operator]
        self._layers = (library.Layer * len(structs))(*structs)
        self._stack = library.Stack(
            layers=self._layers,
            final_norm=address(self.final_norm),
            num_layers=len(structs),
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            eps=self.eps,
            scale=self.scale,
        )

    @property
    def stack(self) -> library.Stack:
        if self._stack is None:
            raise KernelError("the fused layers were used before they were filled and bound")
        return self._stack

    def forward(
        self, ids_T: Tensor, seqs: Sequences, embedding: PackedLinear, rope: Rope
    ) -> Tensor:
        """-> [T, D] float32; keys and values of the new tokens go to the cache."""
        step = native_step(ids_T, seqs, embedding, rope)
        if isinstance(seqs, PagedSequences):
            return self._run(seqs, step)
        return self._run_around(embedding.rows(ids_T), seqs, step)

    def _run(self, seqs: PagedSequences, step: NativeStep) -> Tensor:
        cache = seqs.cache
        point_to_cache(step, tables_of(seqs), cache.keys[0])
        step.key_cache = ctypes.addressof(cache.key_pointers)
        step.value_cache = ctypes.addressof(cache.value_pointers)
        x_TD = torch.empty(step.rows, self.hidden, dtype=torch.float32)
        library.check(
            native_library().mull_stack(
                ctypes.byref(self.stack), ctypes.byref(step), x_TD.data_ptr(), library.threads()
            )
        )
        return x_TD

    def _run_around(self, x_TD: Tensor, seqs: Sequences, step: NativeStep) -> Tensor:
        lib, rows, d = native_library(), len(x_TD), self.head_dim
        heads = (self.heads, self.kv_heads, self.kv_heads)
        stack, one_step, threads = ctypes.byref(self.stack), ctypes.byref(step), library.threads()
        for layer in range(len(self.layers)):
            qkv = torch.empty(rows, sum(heads), d, dtype=torch.float32)
            library.check(
                lib.mull_attention_inputs(
                    stack, layer, one_step, x_TD.data_ptr(), qkv.data_ptr(), threads
                )
            )
            q_THd, k_TGd, v_TGd = qkv.split(heads, dim=1)
            out_THd = seqs.attend(layer, q_THd, k_TGd, v_TGd, self.scale).float().contiguous()
            library.check(
                lib.mull_attention_outputs(
                    stack, layer, one_step, out_THd.data_ptr(), x_TD.data_ptr(), threads
                )
            )
        return _final_norm(x_TD, self.final_norm, self.eps)


def _final_norm(x_TD: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
    assert weight_D is not None
    return nn.functional.rms_norm(x_TD, weight_D.shape, weight_D, eps)
