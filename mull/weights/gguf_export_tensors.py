"""A checkpoint's tensors as llama.cpp wants them in a GGUF file: names, order of rows, stacking.

The way back of `gguf_tensors`: the llama architecture interleaves the two halves of each rotary
head in its q and k rows, the experts of a layer become one tensor, and kv_b_proj is split into a
transposed key part and a value part, so that llama.cpp attends over the latent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import torch
from torch import Tensor

from mull.errors import WeightsError
from mull.model.checkpoint_names import checkpoint_slots
from mull.model.config import ModelConfig
from mull.model.rope import inverse_frequencies
from mull.model.transformer import CausalLM
from mull.weights.gguf_quantise import block_size
from mull.weights.gguf_tensors import IN_LAYER, WHOLE_MODEL
from mull.weights.tensor_source import TensorSource

GgmlType = gguf.GGMLQuantizationType

_WHOLE_MODEL = {name: part for part, name in WHOLE_MODEL.items()}
_IN_LAYER = {name: part for part, name in IN_LAYER.items()}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
_SELECTION_BIAS = re.compile(r"model\.layers\.(\d+)\.mlp\.gate\.e_score_correction_bias")
_KEY_UP = re.compile(r"model\.layers\.(\d+)\.self_attn\.kv_b_proj\.weight")


@dataclass(frozen=True)
class ExportTensor:
    """One tensor of the file to be: the rows of `sources`, one after another, in this shape."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[TensorSource, ...]

    def stored_as(self, wanted: GgmlType, *, is_tied: bool) -> GgmlType:
        """Its type in a file of type `wanted`, as llama.cpp's own quantiser chooses it.

        Vectors and the router stay float32. In a Q4_0 file the head (or the embedding that is the
        head too) is Q6_K. Where rows are no multiple of a block: Q8_0 for Q6_K, else float16.
        """
        if len(self.shape) == 1 or ".ffn_gate_inp." in self.name or wanted is GgmlType.F32:
            return GgmlType.F32
        is_head = self.name == ("token_embd.weight" if is_tied else "output.weight")
        first = GgmlType.Q6_K if wanted is GgmlType.Q4_0 and is_head else wanted
        fitting = (first, GgmlType.Q8_0) if first is GgmlType.Q6_K else (first,)
        columns = self.shape[-1]
        return next((kind for kind in fitting if columns % block_size(kind) == 0), GgmlType.F16)


def model_sources(model: CausalLM) -> dict[str, TensorSource]:
    """The tensors of a model in memory, by checkpoint name, MTP modules left out."""
    state = model.state_dict()
    sources = {}
    for name, slot in checkpoint_slots(state, model.config).items():
        if not slot.parameter.startswith("mtp.") and not slot.is_copy:
            tensor = slot.of(state[slot.parameter]).detach()

            def read(start: int, stop: int, tensor: Tensor = tensor) -> Tensor:
                return tensor[start:stop].cpu()

            sources[name] = TensorSource(name, tuple(tensor.shape), Path("the model"), read)
    return sources


def export_tensors(
    config: ModelConfig, sources: Mapping[str, TensorSource]
) -> dict[str, ExportTensor]:
    """The file's tensors by name, in the order of the sources. Raises WeightsError."""
    stacks: dict[str, list[TensorSource]] = {}
    for name, source in sources.items():
        layer = _LAYER.fullmatch(name)
        if layer is not None and int(layer[1]) >= config.num_hidden_layers:
            continue  # an MTP module: llama.cpp would refuse it
        for part in _parts(config, name, source):
            stacks.setdefault(part.name, []).append(part)
    if config.rope_scaling is not None and config.rope_scaling["rope_type"] == "llama3":
        stacks["rope_freqs.weight"] = [_rope_factors(config)]
    shape_of = {name: found[0].shape for name, found in stacks.items()}
    heads = config.num_attention_heads
    for name, found in stacks.items():
        shape = shape_of[name]
        if "_exps." in name:
            shape_of[name] = (len(found), *shape)
        elif ".attn_k_b." in name or ".attn_v_b." in name:
            shape_of[name] = (heads, shape[0] // heads, shape[1])
    return {
        name: ExportTensor(name, shape_of[name], tuple(found)) for name, found in stacks.items()
    }


def _parts(config: ModelConfig, name: str, source: TensorSource) -> list[TensorSource]:
    """One checkpoint tensor under its name or names in the file."""
    if name in _WHOLE_MODEL:
        return [replace(source, name=_WHOLE_MODEL[name])]
    if (expert := _EXPERT.fullmatch(name)) is not None:
        return [replace(source, name=f"blk.{expert[1]}.ffn_{expert[3]}_exps.weight")]
    if (bias := _SELECTION_BIAS.fullmatch(name)) is not None:
        return [replace(source, name=f"blk.{bias[1]}.exp_probs_b.bias")]
    if (key_up := _KEY_UP.fullmatch(name)) is not None:
        return _split_kv_b(config, f"blk.{key_up[1]}", source)
    layer = _LAYER.fullmatch(name)
    part = _IN_LAYER.get(layer[2]) if layer is not None else None
    if layer is None or part is None:
        raise WeightsError(f"{source.origin}: GGUF has no name for the tensor {name[:80]}")
    named = replace(source, name=f"blk.{layer[1]}.{part}.{layer[3]}")
    if config.model_type == "llama" and part in ("attn_q", "attn_k"):
        return [_interleaved(named, config.head_dim, 0)]
    if config.is_mla and not config.rope_interleave and part in ("attn_q", "attn_q_b"):
        return [_interleaved(named, config.qk_head_dim, config.qk_nope_head_dim)]
    if config.is_mla and not config.rope_interleave and part == "attn_kv_a_mqa":
        return [_interleaved(named, config.latent_dim, config.kv_lora_rank or 0)]
    return [named]


def _interleaved(source: TensorSource, head: int, kept: int) -> TensorSource:
    """In every head of `head` rows, after the first `kept`: (half, j) becomes (j, half)."""

    def rearrange(rows: Tensor) -> Tensor:
        heads = rows.unflatten(0, (-1, head))
        halves = heads[:, kept:].unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return torch.cat((heads[:, :kept], halves), 1).flatten(0, 1)

    return _mapped(source, source.name, source.shape, head, head, rearrange)


def _split_kv_b(config: ModelConfig, prefix: str, source: TensorSource) -> list[TensorSource]:
    """kv_b_proj [H*(nope+value), latent] as k_b [H*latent, nope] and v_b [H*value, latent]."""
    heads, nope, value_dim = (
        config.num_attention_heads,
        config.qk_nope_head_dim,
        config.v_head_dim,
    )
    latent, per_head = source.shape[1], nope + value_dim

    def keys(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, per_head))[:, :nope].transpose(1, 2).flatten(0, 1)

    def values(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, per_head))[:, nope:].flatten(0, 1)

    return [
        _mapped(
            source, f"{prefix}.attn_k_b.weight", (heads * latent, nope), per_head, latent, keys
        ),
        _mapped(
            source,
            f"{prefix}.attn_v_b.weight",
            (heads * value_dim, latent),
            per_head,
            value_dim,
            values,
        ),
    ]


def _mapped(
    source: TensorSource,
    name: str,
    shape: tuple[int, ...],
    taken: int,
    given: int,
    change: Callable[[Tensor], Tensor],
) -> TensorSource:
    """A source whose every `given` rows are made by `change` of `taken` rows of another."""
    # Heads that must be read together because the source itself reads in larger groups.
    heads = math.lcm(source.row_group, taken) // taken

    def read(start: int, stop: int) -> Tensor:
        return change(source.read(start // given * taken, stop // given * taken))

    return TensorSource(name, shape, source.origin, read, row_group=heads * given)


def _rope_factors(config: ModelConfig) -> TensorSource:
    """What llama.cpp divides the frequency of each pair by, for llama3's scaling."""
    plain = inverse_frequencies(config.rope_dim, config.rope_theta, None)
    scaled = inverse_frequencies(config.rope_dim, config.rope_theta, config.rope_scaling)
    factors = plain / scaled
    name = "rope_freqs.weight"
    return TensorSource(name, tuple(factors.shape), Path("the model"), lambda a, b: factors[a:b])
