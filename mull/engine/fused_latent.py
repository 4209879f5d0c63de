"""All decoder layers of a DeepSeek-architecture model as one module that runs in native code.

Latent attention in its absorbed form, then a dense MLP or routed and shared experts: one call
computes every layer and the final norm on the paged cache. Sequences without a cache get one of
their own for the call, which the layers use one after another.
`T new tokens (packed) · D model · E experts · F expert hidden width · H heads · K latent ·
n, v unroped key and value width of a head · c = K + roped width`.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mull.engine.cache import PagedCache
from mull.engine.native_step import (
    NativeStep,
    native_library,
    native_step,
    point_to_cache,
    tables_of,
    with_other_tokens,
)
from mull.engine.packing import Fill, address, already_filled, norm_weight, take_packed
from mull.engine.paged import PagedSequences
from mull.errors import KernelError
from mull.kernels import PackedLinear, library
from mull.kernels.layout import PANEL
from mull.model.config import ModelConfig
from mull.model.decoder import DecoderLayer
from mull.model.layers import GatedMLP, RMSNorm
from mull.model.mla import LatentAttention
from mull.model.moe import MixtureOfExperts, Router
from mull.model.mtp import NextTokenModule
from mull.model.rope import Rope, latent_softmax_scale
from mull.model.sequences import PackedSequences, Sequences

if TYPE_CHECKING:
    from mull.engine.fused_decoder import FusedDecoder

_UNIT = 32  # expert widths are padded to a multiple of it, see native/moe.h
_SCORING = {"softmax": 0, "sigmoid": 1}
_GROUP_RULES = {"group_limited_greedy": 1, "noaux_tc": 2}
_OWN_BLOCK = 16
_POINTER_BYTES = ctypes.sizeof(ctypes.c_void_p)


class FusedLatentLayer(nn.Module):
    """One decoder layer's packed weights. Takes the originals apart: each tensor is dropped as soon
    as its packed copy exists. fill: see prepare."""

    def __init__(self, layer: DecoderLayer, kind: str, fill: Fill = already_filled) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        assert isinstance(attention, LatentAttention)
        self.q: PackedLinear | None = None
        q_norm: Tensor | None = None
        queries = "q_proj"
        if attention.has_q_latent:
            queries = "q_a_proj"
            q_norm = norm_weight(attention.q_a_layernorm, fill)
            self.q = take_packed(attention, ("q_b_proj",), kind, fill)
        self.entry = take_packed(attention, (queries, "kv_a_proj_with_mqa"), kind, fill)
        self.register_buffer("q_norm", q_norm)
        self.register_buffer("latent_norm", norm_weight(attention.kv_a_layernorm, fill))
        self.register_buffer("input_norm", norm_weight(layer.input_layernorm, fill))
        self.register_buffer("post_norm", norm_weight(layer.post_attention_layernorm, fill))
        # What four bits lose here would be in every key and value: they are few, so keep eight.
        self.up_key, self.up_value = _take_up(attention, "q8" if kind == "q4" else kind, fill)
        self.out = take_packed(attention, ("o_proj",), kind, fill)
        self._take_mlp(mlp, kind, fill)

    def _take_mlp(self, mlp: nn.Module, kind: str, fill: Fill) -> None:
        dense: nn.Module | None = mlp
        self.router: PackedLinear | None = None
        selection_bias: Tensor | None = None
        if isinstance(mlp, MixtureOfExperts):
            dense = mlp.shared_experts if mlp.has_shared else None
            self.router, selection_bias = _take_router(mlp.gate, fill)
            fill(mlp.experts)
            self.expert_gate_up = _pack_experts(mlp.experts.gate_up_proj, kind, gates=2)
            del mlp.experts.gate_up_proj
            self.expert_down = _pack_experts(mlp.experts.down_proj, kind, gates=1)
            del mlp.experts.down_proj
        self.register_buffer("selection_bias", selection_bias)
        self.gate = self.up = self.down = None
        if dense is not None:
            assert isinstance(dense, GatedMLP)
            self.gate = take_packed(dense, ("gate_proj",), kind, fill)
            self.up = take_packed(dense, ("up_proj",), kind, fill)
            self.down = take_packed(dense, ("down_proj",), kind, fill)

    def native(self) -> library.LatentLayer:
        """Of this layer's tensors as they are bound now."""
        linears = {name: linear.native for name, linear in self.named_children()}
        tensors = {name: address(x) for name, x in self._buffers.items()}
        return library.LatentLayer(**linears, **tensors)  # fields and children bear the same names


class FusedLatentLayers(nn.Module):
    """Layers `first_layer` and following, and a final norm.

    The residual is float32.
    """

    final_norm: Tensor

    def __init__(
        self,
        config: ModelConfig,
        layers: list[FusedLatentLayer],
        norm: RMSNorm,
        fill: Fill = already_filled,
        *,
        first_layer: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.first_layer = config, first_layer
        self.layers = nn.ModuleList(layers)
        self.register_buffer("final_norm", norm_weight(norm, fill))
        self._stack: library.LatentStack | None = None

    def bind(self) -> None:
        """Hand the tensors' addresses to the native code; after the packed layers' own `bind`."""
        config = self.config
        structs = [layer.native() for layer in self.layers]  # type: ignore[operator]
        self._layers = (library.LatentLayer * len(structs))(*structs)
        self._stack = library.LatentStack(
            layers=self._layers,
            final_norm=address(self.final_norm),
            num_layers=len(structs),
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            latent=config.kv_lora_rank,
            nope=config.qk_nope_head_dim,
            rope=config.qk_rope_head_dim,
            value=config.v_head_dim,
            routing=_routing(config),
            eps=config.rms_norm_eps,
            scale=latent_softmax_scale(config),
            interleaved=config.rope_interleave,
        )

    @property
    def stack(self) -> library.LatentStack:
        if self._stack is None:
            raise KernelError("the fused layers were used before they were filled and bound")
        return self._stack

    def forward(
        self, ids_T: Tensor, seqs: Sequences, embedding: PackedLinear, rope: Rope
    ) -> Tensor:
        """-> [T, D] float32; the new tokens' latents go to the cache."""
        step = native_step(ids_T, seqs, embedding, rope)
        kept = self.point(step, seqs)
        if isinstance(seqs, PagedSequences):
            seqs.native_step = step
        x_TD = torch.empty(step.rows, self.config.hidden_size, dtype=torch.float32)
        library.check(
            native_library().mull_latent_stack(
                ctypes.byref(self.stack), ctypes.byref(step), x_TD.data_ptr(), library.threads()
            )
        )
        del kept
        return x_TD

    def point(self, step: NativeStep, seqs: Sequences) -> object:
        """Point the step to these layers' cache; what is returned must outlive its use."""
        if isinstance(seqs, PagedSequences):
            point_to_cache(step, tables_of(seqs), seqs.cache.latents[0])
            return self.point_to_own(step, seqs.cache)
        if not isinstance(seqs, PackedSequences):
            raise KernelError(f"fused layers cannot attend over {type(seqs).__name__}")
        tables, own = _own_cache(seqs.lengths, self.config.latent_dim)
        point_to_cache(step, tables, own)
        pointers = (ctypes.c_void_p * len(self.layers))(*[own.data_ptr()] * len(self.layers))
        step.key_cache = ctypes.addressof(pointers)
        return own, pointers

    def point_to_own(self, step: NativeStep, cache: PagedCache) -> object:
        """The cache's layers that are these, as `point`."""
        pointers = cache.latent_pointers
        if self.first_layer + len(self.layers) > len(pointers):
            raise KernelError(
                f"the cache holds {len(pointers)} layers, not the {self.first_layer} and "
                f"{len(self.layers)} that are asked for"
            )
        step.key_cache = ctypes.addressof(pointers) + self.first_layer * _POINTER_BYTES
        return pointers


class FusedNextToken(nn.Module):
    """One depth of multi-token prediction, called like the NextTokenModule it takes apart."""

    token_norm: Tensor
    hidden_norm: Tensor

    def __init__(
        self,
        config: ModelConfig,
        module: NextTokenModule,
        depth: int,
        kind: str,
        fill: Fill = already_filled,
    ) -> None:
        super().__init__()
        self.register_buffer("token_norm", norm_weight(module.enorm, fill))
        self.register_buffer("hidden_norm", norm_weight(module.hnorm, fill))
        self.join = take_packed(module, ("eh_proj",), kind, fill)
        self.layers = FusedLatentLayers(
            config,
            [FusedLatentLayer(module, kind, fill)],
            module.shared_head.norm,
            fill,
            first_layer=config.num_hidden_layers + depth,
        )
        self._native: library.NextToken | None = None

    def bind(self) -> None:
        """As FusedLayers.bind."""
        self._native = library.NextToken(
            token_norm=address(self.token_norm),
            hidden_norm=address(self.hidden_norm),
            join=self.join.native,
            stack=self.layers.stack,
        )

    @property
    def native(self) -> library.NextToken:
        if self._native is None:
            raise KernelError("the fused module was used before it was filled and bound")
        return self._native

    def forward(
        self, hidden_TD: Tensor, next_ids_T: Tensor, seqs: Sequences, decoder: FusedDecoder
    ) -> Tensor:
        """hidden_TD: of the depth before; next_ids_T: the tokens that follow -> [T, D] float32."""
        hidden_TD = hidden_TD.float().contiguous()
        if isinstance(seqs, PagedSequences) and seqs.native_step is not None:
            step = with_other_tokens(seqs.native_step, next_ids_T)
            kept = self.layers.point_to_own(step, seqs.cache)
        else:
            step = native_step(next_ids_T, seqs, decoder.embed_tokens.head, decoder.rope)
            kept = self.layers.point(step, seqs)
        x_TD = torch.empty_like(hidden_TD)
        library.check(
            native_library().mull_next_token(
                ctypes.byref(self.native),
                ctypes.byref(step),
                hidden_TD.data_ptr(),
                x_TD.data_ptr(),
                library.threads(),
            )
        )
        del kept
        return x_TD


def _routing(config: ModelConfig) -> library.Routing:
    chosen = config.num_experts_per_tok
    return library.Routing(
        experts=config.n_routed_experts,
        chosen=chosen,
        groups=config.n_group,
        kept_groups=config.topk_group,
        scoring=_SCORING[config.scoring_func],
        group_rule=_GROUP_RULES.get(config.topk_method, 0),
        normalise=config.norm_topk_prob and chosen > 1,
        scaling=config.routed_scaling_factor,
    )


def _own_cache(
    lengths: list[int], width: int
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """(slots, block table, query starts, context) and one layer's latents for whole sequences."""
    blocks = [-(-length // _OWN_BLOCK) for length in lengths]
    firsts = [sum(blocks[:b]) for b in range(len(blocks))]
    table = torch.zeros(len(lengths), max(blocks, default=0), dtype=torch.int32)
    slots = [torch.zeros(0, dtype=torch.int32)]
    for b, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        table[b, : blocks[b]] = torch.arange(first, first + blocks[b])
        slots.append(torch.arange(length, dtype=torch.int32) + first * _OWN_BLOCK)
    context = torch.tensor(lengths, dtype=torch.int32)
    starts = F.pad(context.cumsum(0, dtype=torch.int32), (1, 0))
    latents_NSc = torch.empty(sum(blocks), _OWN_BLOCK, width, dtype=torch.float32)
    return (torch.cat(slots), table, starts, context), latents_NSc


def _take_up(
    attention: LatentAttention, kind: str, fill: Fill
) -> tuple[PackedLinear, PackedLinear]:
    """kv_b_proj as (up_key, up_value): per head a product into the latent's space and one out."""
    fill(attention.kv_b_proj)
    weight = attention.kv_b_proj.weight.detach()
    del attention.kv_b_proj
    heads, nope, value = attention.heads, attention.nope_dim, attention.value_dim
    if weight.is_meta:  # by arithmetic, see take_packed
        latent = attention.latent_rank
        up_key = PackedLinear(nope, heads * _up_to(latent, PANEL), kind, device="meta")
        return up_key, PackedLinear(latent, heads * _up_to(value, PANEL), kind, device="meta")
    up_HxK = weight.unflatten(0, (heads, -1))
    up_HnK, up_HvK = up_HxK.split((nope, value), dim=1)
    up_HKn = _padded(up_HnK.transpose(1, 2), rows=PANEL)
    up_HvK = _padded(up_HvK, rows=PANEL)
    return (
        PackedLinear.pack(up_HKn.flatten(0, 1), None, kind),
        PackedLinear.pack(up_HvK.flatten(0, 1), None, kind),
    )


def _take_router(router: Router, fill: Fill) -> tuple[PackedLinear, Tensor | None]:
    fill(router)
    packed = PackedLinear.pack(router.weight, None, "fp32")
    return packed, router.e_score_correction_bias if router.has_selection_bias else None


def _pack_experts(weight_ENK: Tensor, kind: str, *, gates: int) -> PackedLinear:
    """All experts' outputs after each other, one expert packed at a time.

    gates 2: [E, 2F, D], gate and up each padded to a multiple of _UNIT outputs; gates 1: [E, D, F],
    the inputs padded so.
    """
    experts, outputs, inputs = weight_ENK.shape
    height = _up_to(outputs // gates, _UNIT if gates == 2 else PANEL)
    width = inputs if gates == 2 else _up_to(inputs, _UNIT)
    rows = gates * height
    device = "meta" if weight_ENK.is_meta else None
    packed = PackedLinear(width, experts * rows, kind, device=device)
    if weight_ENK.is_meta:
        return packed
    for expert, weight_NK in enumerate(weight_ENK.detach()):
        parts = weight_NK.unflatten(0, (gates, -1))
        padded = F.pad(parts, (0, width - inputs, 0, height - parts.shape[1]))
        packed.fill_rows(expert * rows, padded.flatten(0, 1))
    packed.bind()
    return packed


def _padded(x_HNK: Tensor, *, rows: int) -> Tensor:
    return F.pad(x_HNK, (0, 0, 0, _up_to(x_HNK.shape[1], rows) - x_HNK.shape[1]))


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
