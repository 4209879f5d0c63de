"""From GGUF metadata to the fields of a Hugging Face config.json.

One function per GGUF architecture; the keys and their meaning are those llama.cpp writes and reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mull.errors import WeightsError
from mull.weights.gguf_file import GgmlType, GgufFile
from mull.weights.gguf_header import GgufTensor
from mull.weights.gguf_metadata import Metadata
from mull.weights.gguf_rope import latent_rope_scaling, llama3_scaling, rope_scaling

# DeepSeek-V3/R1 and V2 were trained with grouped routing, but files made before llama.cpp had the
# keys do not record it: (experts, sigmoid) -> (n_group, topk_group), from the models' config.json.
UNRECORDED_GROUPS = {(256, True): (8, 4), (160, False): (8, 3)}

GATING_SOFTMAX, GATING_SIGMOID = 1, 2
# The type of the embedding tells what the weights were before they were quantised, if they were.
STORED_DTYPES = {GgmlType.F32: "float32", GgmlType.F16: "float16"}


def config_from_gguf(files: list[GgufFile]) -> dict[str, Any]:
    """What config.json would say of the model in these files. Raises WeightsError."""
    first = files[0]
    architecture = first.metadata.get("general.architecture")
    describe = ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    if describe is None or not isinstance(architecture, str):
        raise WeightsError(
            f"{first.path}: architecture {str(architecture)[:60]!r} is not one mull runs; it runs"
            f" {', '.join(ARCHITECTURES)}"
        )
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    meta = Metadata(first.metadata, architecture, first.path)
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise WeightsError(f"{first.path}: has no tensor token_embd.weight; the file is incomplete")
    config: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": meta.integer("embedding_length", low=1),
        "num_hidden_layers": meta.integer("block_count", low=1),
        "num_attention_heads": meta.integer("attention.head_count", low=1),
        "max_position_embeddings": meta.integer("context_length", low=1),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": meta.number("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": STORED_DTYPES.get(embedding.type, "bfloat16"),
        **_special_tokens(first.metadata),
    }
    config["intermediate_size"] = meta.integer("feed_forward_length", low=1)
    config.update(describe(meta, config, tensors, files))
    return config


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, Any]:
    ends = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    found: dict[str, Any] = {}
    end_ids = list(dict.fromkeys(end for end in ends if isinstance(end, int)))
    if end_ids:
        found["eos_token_id"] = end_ids
    if isinstance(begin := metadata.get("tokenizer.ggml.bos_token_id"), int):
        found["bos_token_id"] = begin
    return found


Describe = Callable[
    [Metadata, dict[str, Any], Mapping[str, GgufTensor], list[GgufFile]], dict[str, Any]
]


def _grouped_attention(
    meta: Metadata, config: dict[str, Any], tensors: Mapping[str, GgufTensor]
) -> dict[str, Any]:
    head_dim = meta.integer(
        "attention.key_length", config["hidden_size"] // config["num_attention_heads"], low=1
    )
    if head_dim % 2:
        raise meta.wrong(
            "attention.key_length", f"even (RoPE rotates pairs; a head has {head_dim})"
        )
    if meta.integer("rope.dimension_count", head_dim) != head_dim:
        raise meta.wrong("rope.dimension_count", f"the head size {head_dim}")
    return {
        "head_dim": head_dim,
        "num_key_value_heads": meta.integer(
            "attention.head_count_kv", config["num_attention_heads"], low=1
        ),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
        "rope_scaling": rope_scaling(meta, config),
    }


def _llama(
    meta: Metadata,
    config: dict[str, Any],
    tensors: Mapping[str, GgufTensor],
    files: list[GgufFile],
) -> dict[str, Any]:
    fields = {"model_type": "llama", **_grouped_attention(meta, config, tensors)}
    for file in files:
        if "rope_freqs.weight" in file.tensors:
            fields["rope_scaling"] = llama3_scaling(
                file, meta, config["rope_theta"], fields["head_dim"]
            )
    return fields


def _qwen2(
    meta: Metadata,
    config: dict[str, Any],
    tensors: Mapping[str, GgufTensor],
    files: list[GgufFile],
) -> dict[str, Any]:
    # Its q, k and v always have biases; `attention_bias` is no field of Qwen2's configuration.
    fields = _grouped_attention(meta, config, tensors)
    return {**fields, "model_type": "qwen2", "attention_bias": False}


def _qwen3(
    meta: Metadata,
    config: dict[str, Any],
    tensors: Mapping[str, GgufTensor],
    files: list[GgufFile],
) -> dict[str, Any]:
    return {"model_type": "qwen3", **_grouped_attention(meta, config, tensors)}


def _deepseek2(
    meta: Metadata,
    config: dict[str, Any],
    tensors: Mapping[str, GgufTensor],
    files: list[GgufFile],
) -> dict[str, Any]:
    gating = meta.integer("expert_gating_func", GATING_SOFTMAX) or GATING_SOFTMAX
    if gating not in (GATING_SOFTMAX, GATING_SIGMOID):
        raise meta.wrong("expert_gating_func", "1 (softmax) or 2 (sigmoid)")
    is_sigmoid = gating == GATING_SIGMOID
    # Files of the older layout give the head sizes themselves, newer ones those of the latent.
    suffix = "_mla" if meta.has("attention.key_length_mla") else ""
    rope_dim = meta.integer("rope.dimension_count", low=1)
    draft_layers = meta.integer("nextn_predict_layers", 0)
    layers = config["num_hidden_layers"] - draft_layers
    if layers < 1:
        raise meta.wrong("nextn_predict_layers", "below block_count")
    is_v3 = is_sigmoid or any(".exp_probs_b." in name for name in tensors)
    return {
        "model_type": "deepseek_v3" if is_v3 else "deepseek_v2",
        "num_hidden_layers": layers,
        "num_nextn_predict_layers": draft_layers,
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": meta.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": meta.integer("attention.kv_lora_rank", low=1),
        "qk_rope_head_dim": rope_dim,
        "qk_nope_head_dim": meta.integer(f"attention.key_length{suffix}") - rope_dim,
        "v_head_dim": meta.integer(f"attention.value_length{suffix}"),
        "rope_scaling": latent_rope_scaling(meta, config),
        **_routing(meta, tensors, is_sigmoid),
    }


def _routing(meta: Metadata, tensors: Mapping[str, GgufTensor], is_sigmoid: bool) -> dict[str, Any]:
    experts = meta.integer("expert_count", 0)
    if experts == 0:
        return {"n_routed_experts": 0}
    has_bias = any(".exp_probs_b." in name for name in tensors)
    groups, kept = UNRECORDED_GROUPS.get((experts, is_sigmoid), (1, 1))
    groups = meta.integer("expert_group_count", groups, low=1)
    kept = meta.integer("expert_group_used_count", kept, low=1)
    greedy = "greedy" if groups == 1 else "group_limited_greedy"
    return {
        "n_routed_experts": experts,
        "num_experts_per_tok": meta.integer("expert_used_count", low=1),
        "n_shared_experts": meta.integer("expert_shared_count", 0),
        "moe_intermediate_size": meta.integer("expert_feed_forward_length", low=1),
        "first_k_dense_replace": meta.integer("leading_dense_block_count", 0),
        "moe_layer_freq": 1,
        "n_group": groups,
        "topk_group": kept,
        "topk_method": "noaux_tc" if has_bias else greedy,
        "scoring_func": "sigmoid" if is_sigmoid else "softmax",
        "norm_topk_prob": meta.boolean("expert_weights_norm", False),
        "routed_scaling_factor": meta.number("expert_weights_scale", 1.0) or 1.0,
    }


ARCHITECTURES: dict[str, Describe] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "deepseek2": _deepseek2,
}
