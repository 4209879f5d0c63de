"""From GGUF metadata to the fields of a Hugging Face config.json.

One function per GGUF architecture; the keys and their meaning are those llama.cpp writes and reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mull.errors import WeightsError
from mull.weights.gguf_file import GgufFile
from mull.weights.gguf_header import GgufTensor

# DeepSeek-V3/R1 and V2 were trained with grouped routing, but files made before llama.cpp had the
# keys do not record it: (experts, sigmoid) -> (n_group, topk_group), from the models' config.json.
UNRECORDED_GROUPS = {(256, True): (8, 4), (160, False): (8, 3)}

GATING_SOFTMAX, GATING_SIGMOID = 1, 2
LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_CONTEXT = 1.0, 4.0, 8192


class Metadata:
    """Typed access to `{architecture}.KEY`, so that a wrong type is one readable error."""

    def __init__(self, values: Mapping[str, Any], architecture: str, path: Path) -> None:
        self.values, self.architecture, self.path = values, architecture, path

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.values

    def wrong(self, key: str, wanted: str) -> WeightsError:
        found = repr(self.values.get(f"{self.architecture}.{key}", "absent"))[:60]
        return WeightsError(
            f"{self.path}: metadata {self.architecture}.{key} is {found}, but must be {wanted};"
            " convert the model again"
        )

    def integer(self, key: str, default: int | None = None, *, low: int = 0) -> int:
        value = self.values.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # written once per layer; mull's models are alike in every layer
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1 << 31:
            raise self.wrong(key, f"one integer from {low}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(f"{self.architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        if not math.isfinite(value):
            raise self.wrong(key, "finite")
        return _shortest(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.values.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value


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
        "torch_dtype": "bfloat16",
        **_special_tokens(first.metadata),
    }
    config["intermediate_size"] = meta.integer("feed_forward_length", low=1)
    config.update(describe(meta, config, tensors, files))
    return config


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, Any]:
    ends = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
    found: dict[str, Any] = {}
    end_ids = list(dict.fromkeys(end for end in ends if isinstance(end, int)))
    if end_ids:
        found["eos_token_id"] = end_ids
    if isinstance(begin := metadata.get("tokenizer.ggml.bos_token_id"), int):
        found["bos_token_id"] = begin
    return found


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


Describe = Callable[
    [Metadata, dict[str, Any], Mapping[str, GgufTensor], list[GgufFile]], dict[str, Any]
]


def _grouped_attention(
    meta: Metadata, config: dict[str, Any], tensors: Mapping[str, GgufTensor]
) -> dict[str, Any]:
    head_dim = meta.integer(
        "attention.key_length", config["hidden_size"] // config["num_attention_heads"], low=1
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
        "rope_scaling": _rope_scaling(meta, config),
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
            fields["rope_scaling"] = _llama3_scaling(file, config["rope_theta"], fields["head_dim"])
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
    scaling = _rope_scaling(meta, config)
    if scaling is not None and meta.has("rope.scaling.yarn_log_multiplier"):
        # Stored is 0.1 * mscale_all_dim; the two mscales are equal in every DeepSeek model.
        mscale = _shortest(meta.number("rope.scaling.yarn_log_multiplier") / 0.1)
        scaling |= {"mscale": mscale, "mscale_all_dim": mscale}
    return {
        "model_type": "deepseek_v3" if is_sigmoid else "deepseek_v2",
        "num_hidden_layers": layers,
        "num_nextn_predict_layers": draft_layers,
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": meta.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": meta.integer("attention.kv_lora_rank", low=1),
        "qk_rope_head_dim": rope_dim,
        "qk_nope_head_dim": meta.integer(f"attention.key_length{suffix}") - rope_dim,
        "v_head_dim": meta.integer(f"attention.value_length{suffix}"),
        "rope_scaling": scaling,
        **_routing(meta, is_sigmoid),
    }


def _routing(meta: Metadata, is_sigmoid: bool) -> dict[str, Any]:
    experts = meta.integer("expert_count", low=1)
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
        "topk_method": "noaux_tc" if is_sigmoid else greedy,
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


def _rope_scaling(meta: Metadata, config: dict[str, Any]) -> dict[str, Any] | None:
    factor = meta.number("rope.scaling.factor", meta.number("rope.scale_linear", 0.0))
    # llama.cpp takes a factor without a type as linear.
    kind = meta.text("rope.scaling.type", "linear")
    if kind == "none" or factor in (0.0, 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise meta.wrong("rope.scaling.type", "none, linear or yarn")
    context = meta.integer(
        "rope.scaling.original_context_length", config["max_position_embeddings"], low=1
    )
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": context,
        "beta_fast": meta.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": meta.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    if meta.has("rope.scaling.attn_factor") and factor > 0:
        # llama.cpp multiplies YaRN's own magnitude by this key.
        own = 0.1 * math.log(factor) + 1.0
        scaling["attention_factor"] = own * meta.number("rope.scaling.attn_factor")
    return scaling


def _llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    """The llama3 rope scaling that gives the factors in rope_freqs.weight.

    A GGUF keeps only the factor of each frequency. All but the boundaries of the ramp can be read
    off; Llama 3.1 to 3.3 share those, others follow from two frequencies inside the ramp.
    """
    tensor = file.tensors["rope_freqs.weight"]
    if tensor.shape != (head_dim // 2,) or not theta > 0:
        raise WeightsError(
            f"{file.path}: rope_freqs.weight has the shape {tensor.shape}, not ({head_dim // 2},)"
        )
    factors = file.rows(tensor, 0, 1)[0].astype(np.float64)
    turns = theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)  # per token
    if not np.all(np.isfinite(factors)) or factors.min() < 1.0 - 1e-6:
        raise WeightsError(f"{file.path}: rope_freqs.weight holds factors below 1; it is damaged")
    factor = _shortest(factors.max())
    if factor == 1.0:
        return None
    for low, high, context in [
        (LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_CONTEXT),
        *_fitted_ramps(factors, turns, factor),
    ]:
        if np.allclose(_llama3_factors(turns, factor, low, high, context), factors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise WeightsError(
        f"{file.path}: rope_freqs.weight is not llama3 scaling, the only kind mull has"
    )


def _llama3_factors(
    turns: np.ndarray, factor: float, low: float, high: float, context: int
) -> np.ndarray:
    ramp = np.clip((context * turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - ramp) / factor + ramp)


def _fitted_ramps(
    factors: np.ndarray, turns: np.ndarray, factor: float
) -> list[tuple[float, float, int]]:
    """The ramp is a line in turns per token: two points inside it give its ends (with low = 1)."""
    ramp = (1.0 / factors - 1.0 / factor) / (1.0 - 1.0 / factor)
    inside = np.flatnonzero((ramp > 1e-3) & (ramp < 1.0 - 1e-3))
    if len(inside) < 2:
        return []
    first, last = inside[0], inside[-1]
    slope = (ramp[first] - ramp[last]) / (turns[first] - turns[last])
    zero = turns[first] - ramp[first] / slope
    if not slope > 0 or not zero > 0:
        return []
    context = max(1, round(1.0 / zero))
    return [(1.0, _shortest(1.0 + context / slope), context)]
