"""GGUF tensors under their checkpoint (Hugging Face) names, with llama.cpp's rearrangements undone.

Three things differ from the checkpoint besides names: the llama architecture interleaves the two
halves of each rotary head in its q and k rows, the experts of a layer are one tensor, and newer
deepseek2 files split kv_b_proj into a transposed key part and a value part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mull.errors import WeightsError
from mull.weights.gguf_file import GgufFile
from mull.weights.gguf_header import GgufTensor
from mull.weights.tensor_source import TensorSource

# Names in the file -> names in the checkpoint; `gguf_export_tensors` reads them the other way.
WHOLE_MODEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "nextn.eh_proj": "eh_proj",
    "nextn.embed_tokens": "embed_tokens",
    "nextn.enorm": "enorm",
    "nextn.hnorm": "hnorm",
    "nextn.shared_head_head": "shared_head.head",
    "nextn.shared_head_norm": "shared_head.norm",
}
EXPERTS = {
    "ffn_gate_exps": ("gate_proj",),
    "ffn_up_exps": ("up_proj",),
    "ffn_down_exps": ("down_proj",),
    "ffn_gate_up_exps": ("gate_proj", "up_proj"),
}
# Tables llama.cpp computes ahead; ours come from the configuration.
_IGNORED = re.compile(r"^(rope_freqs\.weight|blk\.\d+\.(attn_rot_embd|rope_freqs)\.weight)$")
_LAYER_NAME = re.compile(r"^blk\.(\d{1,6})\.(.+)\.(weight|bias)$")


def gguf_sources(files: list[GgufFile], config: dict[str, Any]) -> dict[str, TensorSource]:
    """Every tensor of the files by checkpoint name. config: as `config_from_gguf` gives it."""
    sources: dict[str, TensorSource] = {}
    # A file is split between any two tensors, those that belong together included.
    file_of = {name: file for file in files for name in file.tensors}
    for file in files:
        for tensor in file.tensors.values():
            if _IGNORED.match(tensor.name):
                continue
            for source in _translate(file, tensor, config, file_of):
                if source.name in sources:
                    raise WeightsError(
                        f"{file.path}: tensor {tensor.name} comes twice in the parts"
                    )
                sources[source.name] = source
    return sources


def _translate(
    file: GgufFile, tensor: GgufTensor, config: dict[str, Any], file_of: dict[str, GgufFile]
) -> Iterator[TensorSource]:
    if (whole := WHOLE_MODEL.get(tensor.name)) is not None:
        yield _plain(file, tensor, whole)
        return
    match = _LAYER_NAME.match(tensor.name)
    if match is None:
        raise _unknown(file, tensor)
    layer, part, kind = match.groups()
    prefix = f"model.layers.{int(layer)}"
    if part in EXPERTS:
        yield from _experts(file, tensor, prefix, EXPERTS[part], config)
    elif part == "exp_probs_b":
        yield _plain(file, tensor, f"{prefix}.mlp.gate.e_score_correction_bias")
    elif part in ("attn_k_b", "attn_v_b"):
        # Some transitional files carry both layouts; then the unsplit one is enough.
        if part == "attn_k_b" and f"blk.{layer}.attn_kv_b.weight" not in file_of:
            yield _joined_kv_b(file, tensor, layer, config, file_of)
    elif part in IN_LAYER:
        name = f"{prefix}.{IN_LAYER[part]}.{kind}"
        is_permuted = config["model_type"] == "llama" and part in ("attn_q", "attn_k")
        yield (_unpermuted if is_permuted else _plain)(file, tensor, name, config)
    else:
        raise _unknown(file, tensor)


def _unknown(file: GgufFile, tensor: GgufTensor) -> WeightsError:
    return WeightsError(
        f"{file.path}: tensor {tensor.name[:80]} belongs to no part of the architecture this file"
        " claims; it was made for another model"
    )


def _plain(
    file: GgufFile, tensor: GgufTensor, name: str, config: dict[str, Any] | None = None
) -> TensorSource:
    def read(start: int, stop: int) -> Tensor:
        if len(tensor.shape) == 1:
            return torch.from_numpy(file.rows(tensor, 0, 1)[0, start:stop])
        inner = tensor.rows // tensor.shape[0]
        rows = torch.from_numpy(file.rows(tensor, start * inner, stop * inner))
        return rows.reshape(stop - start, *tensor.shape[1:])

    return TensorSource(name, tensor.shape, file.path, read)


def _unpermuted(
    file: GgufFile, tensor: GgufTensor, name: str, config: dict[str, Any]
) -> TensorSource:
    """llama.cpp stores row (head, j, half); the checkpoint wants (head, half, j)."""
    head_dim = config["head_dim"]
    plain = _plain(file, tensor, name)
    if tensor.shape[0] % head_dim or head_dim % 2:
        raise WeightsError(
            f"{file.path}: tensor {tensor.name} has {tensor.shape[0]} rows, no multiple of an even"
            f" head size ({head_dim})"
        )

    def read(start: int, stop: int) -> Tensor:
        rows = plain.read(start, stop)
        pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
        return pairs.transpose(1, 2).reshape(rows.shape)

    return TensorSource(name, tensor.shape, file.path, read, row_group=head_dim)


def _experts(
    file: GgufFile,
    tensor: GgufTensor,
    prefix: str,
    projections: tuple[str, ...],
    config: dict[str, Any],
) -> Iterator[TensorSource]:
    """The stacked tensor [experts, rows, columns] as one source per expert and projection."""
    experts = config.get("n_routed_experts")
    if len(tensor.shape) != 3 or tensor.shape[0] != experts or tensor.shape[1] % len(projections):
        raise WeightsError(
            f"{file.path}: tensor {tensor.name} has the shape {tensor.shape}, but the model has"
            f" {experts} experts"
        )
    rows = tensor.shape[1] // len(projections)
    shape = (rows, tensor.shape[2])
    for expert in range(tensor.shape[0]):
        for which, projection in enumerate(projections):
            first_row = expert * tensor.shape[1] + which * rows

            def read(start: int, stop: int, first_row: int = first_row) -> Tensor:
                return torch.from_numpy(file.rows(tensor, first_row + start, first_row + stop))

            name = f"{prefix}.mlp.experts.{expert}.{projection}.weight"
            yield TensorSource(name, shape, file.path, read)


def _joined_kv_b(
    file: GgufFile,
    key: GgufTensor,
    layer: str,
    config: dict[str, Any],
    file_of: dict[str, GgufFile],
) -> TensorSource:
    """kv_b_proj [H*(nope+value), latent] of k_b [H, latent, nope] and v_b [H, value, latent]."""
    heads, latent = config["num_attention_heads"], config["kv_lora_rank"]
    nope, value_dim = config["qk_nope_head_dim"], config["v_head_dim"]
    value_name = f"blk.{layer}.attn_v_b.weight"
    value_file = file_of.get(value_name)
    if value_file is None:
        raise WeightsError(f"{file.path}: has {key.name} but no attn_v_b beside it")
    value = value_file.tensors[value_name]
    for origin, tensor, wanted in (
        (file, key, (heads, latent, nope)),
        (value_file, value, (heads, value_dim, latent)),
    ):
        # Early files fold the heads into the rows.
        if tensor.shape not in (wanted, (wanted[0] * wanted[1], wanted[2])):
            raise WeightsError(
                f"{origin.path}: tensor {tensor.name} has the shape {tensor.shape}, but the"
                f" configuration says {wanted}"
            )
    per_head = nope + value_dim

    def read(start: int, stop: int) -> Tensor:
        first, last = start // per_head, stop // per_head
        keys = torch.from_numpy(file.rows(key, first * latent, last * latent))
        values = torch.from_numpy(value_file.rows(value, first * value_dim, last * value_dim))
        keys_HNK = keys.reshape(-1, latent, nope).transpose(1, 2)
        return torch.cat((keys_HNK, values.reshape(-1, value_dim, latent)), 1).reshape(-1, latent)

    name = f"model.layers.{int(layer)}.self_attn.kv_b_proj.weight"
    return TensorSource(name, (heads * per_head, latent), file.path, read, row_group=per_head)
