"""Reads a model's shape out of an untrusted config.json, every value checked against its bounds.

Returns plain keyword values for ModelConfig; raises ModelError, one line, at the first wrong one.
"""

from collections.abc import Mapping
from typing import Any

from mull.errors import ModelError
from mull.model.families import Family
from mull.model.fields import Fields
from mull.model.rope_config import read_rope

SCORING_FUNCTIONS = ("softmax", "sigmoid")
TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")
_DTYPES = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn")


def read_shape(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """All ModelConfig fields but model_type, those of parts the family lacks left out."""
    fields = Fields(values, family.defaults)
    _refuse_what_is_not_built(fields)
    shape = _read_common(fields, family)
    if shape["head_dim"] % 2:
        name = "qk_rope_head_dim" if family.is_mla else "head_dim"
        raise fields.fail(name, shape["head_dim"], "even (RoPE rotates pairs)")
    if family.is_mla:
        shape.update(_read_latent_attention(fields))
        shape.update(_read_experts(fields))
    return shape


def _refuse_what_is_not_built(fields: Fields) -> None:
    fields.choice("hidden_act", ("silu", "swish"), default="silu")
    layer_types = fields.get("layer_types", [])
    slides = isinstance(layer_types, list) and any(kind != "full_attention" for kind in layer_types)
    if fields.boolean("use_sliding_window", default=False):
        # Layers below max_window_layers keep full attention.
        layers = fields.integer("num_hidden_layers", 1, 1024)
        slides |= fields.integer("max_window_layers", 0, 2**31, default=28) < layers
    if slides:
        raise ModelError(
            "config.json: sliding-window attention is in use, which mull does not build; "
            "set use_sliding_window to false if the model was trained with full attention"
        )


def _read_token_ids(fields: Fields, vocab_size: int) -> dict[str, Any]:
    bos, eos = fields.written("bos_token_id"), fields.written("eos_token_id")
    bos_ids = _token_ids(fields, "bos_token_id", [bos])
    eos_ids = _token_ids(fields, "eos_token_id", eos if isinstance(eos, list) else [eos])
    # Some published files name ids outside their vocabulary, or -1 for none: those never occur.
    possible = range(vocab_size)
    return {
        "bos_token_id": next((token for token in bos_ids if token in possible), None),
        "eos_token_ids": tuple(token for token in eos_ids if token in possible),
    }


def _token_ids(fields: Fields, name: str, found: list[Any]) -> list[int]:
    ids = [token for token in found[:1000] if token is not None]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int):
            raise fields.fail(name, token, "a token id (or for eos_token_id a list of them)")
    return ids


def _read_common(fields: Fields, family: Family) -> dict[str, Any]:
    hidden = fields.integer("hidden_size", 1, 2**18)
    heads = fields.integer("num_attention_heads", 1, 2**13)
    groups = fields.integer("num_key_value_heads", 1, 2**13, default=heads)
    if heads % groups:
        raise fields.fail(
            "num_key_value_heads", groups, f"a divisor of num_attention_heads, {heads}"
        )
    if family.is_mla:
        head_dim = fields.integer("qk_rope_head_dim", 2, 2**12)
    else:
        head_dim = fields.integer("head_dim", 2, 2**12, family.default_head_dim or hidden // heads)
    positions = fields.integer("max_position_embeddings", 1, 2**31)
    theta, scaling = read_rope(fields, positions)
    vocab_size = fields.integer("vocab_size", 1, 2**24)
    dtype_name = "dtype" if fields.has("dtype") else "torch_dtype"
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": fields.integer("intermediate_size", 1, 2**22),
        "num_hidden_layers": fields.integer("num_hidden_layers", 1, 1024),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "max_position_embeddings": positions,
        "rms_norm_eps": fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": fields.boolean("tie_word_embeddings", default=False),
        "attention_bias": fields.boolean("attention_bias", default=False),
        "mlp_bias": family.mlp_bias is None and fields.boolean("mlp_bias", default=False),
        "initializer_range": fields.number("initializer_range", 0.0, 100.0, default=0.02),
        "dtype": fields.choice(dtype_name, _DTYPES, default="float32"),
        **_read_token_ids(fields, vocab_size),
    }


def _read_latent_attention(fields: Fields) -> dict[str, Any]:
    has_q_latent = fields.written("q_lora_rank") is not None
    return {
        "rope_interleave": fields.boolean("rope_interleave", default=True),
        "q_lora_rank": fields.integer("q_lora_rank", 1, 2**16) if has_q_latent else None,
        "kv_lora_rank": fields.integer("kv_lora_rank", 1, 2**16),
        "qk_nope_head_dim": fields.integer("qk_nope_head_dim", 1, 2**12),
        "qk_rope_head_dim": fields.integer("qk_rope_head_dim", 2, 2**12),
        "v_head_dim": fields.integer("v_head_dim", 1, 2**12),
    }


def _read_experts(fields: Fields) -> dict[str, Any]:
    experts = fields.integer("n_routed_experts", 0, 2**14)
    # "num_mtp_layers" is what transformers 5 calls it.
    mtp_name = "num_mtp_layers" if fields.has("num_mtp_layers") else "num_nextn_predict_layers"
    values: dict[str, Any] = {
        "num_nextn_predict_layers": fields.integer(mtp_name, 0, 16, default=0),
        "first_k_dense_replace": fields.integer("first_k_dense_replace", 0, 2**31),
        "moe_layer_freq": fields.integer("moe_layer_freq", 1, 1024, default=1),
    }
    if experts == 0:
        return values
    method = fields.choice("topk_method", TOPK_METHODS, default="greedy")
    groups, kept_groups = 1, 1
    if method != "greedy":
        groups = fields.integer("n_group", 1, experts, default=1)
        kept_groups = fields.integer("topk_group", 1, groups, default=1)
    if experts % groups:
        raise fields.fail("n_group", groups, f"a divisor of n_routed_experts, {experts}")
    in_group = experts // groups
    if method == "noaux_tc" and in_group < 2:
        raise fields.fail("n_group", groups, "such that a group has two experts or more")
    return {
        **values,
        "n_routed_experts": experts,
        "n_shared_experts": fields.integer("n_shared_experts", 0, 1024, default=0),
        "num_experts_per_tok": fields.integer("num_experts_per_tok", 1, kept_groups * in_group),
        "moe_intermediate_size": fields.integer("moe_intermediate_size", 1, 2**22),
        "n_group": groups,
        "topk_group": kept_groups,
        "topk_method": method,
        "scoring_func": fields.choice("scoring_func", SCORING_FUNCTIONS, default="softmax"),
        "norm_topk_prob": fields.boolean("norm_topk_prob", default=False),
        "routed_scaling_factor": fields.number("routed_scaling_factor", 0.0, 1e6, default=1.0),
    }
