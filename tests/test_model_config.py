"""config.json: what is read, what is worked out from it, and that no hostile file gets through."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.errors import ModelError
from mull.model import CausalLM, ModelConfig
from mull.model.rope import Rope

DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "noaux_tc",
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "hidden_act": "silu",
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
DEEPSEEK_V2_LITE: dict[str, Any] = {
    "model_type": "deepseek_v2",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "greedy",
    "first_k_dense_replace": 1,
    "max_position_embeddings": 163840,
}
LLAMA_31_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "torch_dtype": "bfloat16",
}
QWEN25_72B: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "use_sliding_window": False,
    "sliding_window": 131072,
    "max_window_layers": 80,
    "eos_token_id": 151645,
}
QWEN3_8B: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "eos_token_id": 151645,
}
PUBLISHED = {
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v2_lite": DEEPSEEK_V2_LITE,
    "llama_31_8b": LLAMA_31_8B,
    "qwen25_72b": QWEN25_72B,
    "qwen3_8b": QWEN3_8B,
    "llama_tied_biases": {
        **LLAMA_31_8B,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "v2_biases": {
        **DEEPSEEK_V2_LITE,
        "q_lora_rank": 96,
        "attention_bias": True,
        "mlp_bias": True,
        "moe_layer_freq": 2,
    },
}


def small(**changes: Any) -> dict[str, Any]:
    return {**LLAMA_31_8B, "rope_scaling": None, **changes}


def test_cache_bytes_per_token_are_those_the_report_states() -> None:
    v3 = ModelConfig.from_dict(DEEPSEEK_V3)
    assert v3.cache_values_per_token == 576 * 61
    assert v3.cache_bytes_per_token(torch.bfloat16) == 70_272
    assert v3.cache_bytes_per_token(torch.int8) == 61 * (512 + 64 + 16)
    # The two models it is set against: Qwen2.5-72B and, by its published shape, Llama-3.1-405B.
    qwen = ModelConfig.from_dict(QWEN25_72B)
    assert qwen.cache_bytes_per_token(torch.bfloat16) == 327_680
    assert qwen.cache_bytes_per_token(torch.int8) == 80 * 2 * 8 * (128 + 4)
    shape_405b = small(num_hidden_layers=126, hidden_size=16384, num_attention_heads=128)
    assert ModelConfig.from_dict(shape_405b).cache_bytes_per_token(torch.bfloat16) == 516_096


def test_parameters_of_published_models_are_those_published() -> None:
    total, active = ModelConfig.from_dict(DEEPSEEK_V3).parameter_count()
    assert 670.9e9 < total < 671.1e9
    # The repository says 36.7 B; it leaves the lookup table of 0.9 B out of that.
    assert 37.4e9 < active < 37.7e9
    total, active = ModelConfig.from_dict(DEEPSEEK_V2_LITE).parameter_count()
    assert 15.70e9 < total < 15.72e9
    assert 2.4e9 < active < 2.7e9
    assert ModelConfig.from_dict(LLAMA_31_8B).parameter_count() == (8_030_261_248,) * 2
    assert 72.6e9 < ModelConfig.from_dict(QWEN25_72B).parameter_count()[0] < 72.8e9
    assert 8.18e9 < ModelConfig.from_dict(QWEN3_8B).parameter_count()[0] < 8.20e9


@pytest.mark.parametrize("name", PUBLISHED)
def test_counted_parameters_are_those_of_the_modules(name: str) -> None:
    config = ModelConfig.from_dict(PUBLISHED[name])
    model = CausalLM(config, device="meta")
    held = {id(tensor): tensor.numel() for tensor in [*model.parameters(), *model.buffers()]}
    assert config.parameter_count()[0] == sum(held.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_survives_writing_and_reading(name: str) -> None:
    config = ModelConfig.from_dict(PUBLISHED[name])
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(ModelConfig.from_dict(config.to_dict()))


def test_both_spellings_of_rope_mean_the_same() -> None:
    old = ModelConfig.from_dict(LLAMA_31_8B)
    values = {k: v for k, v in LLAMA_31_8B.items() if not k.startswith("rope")}
    parameters = {**LLAMA_31_8B["rope_scaling"], "rope_theta": LLAMA_31_8B["rope_theta"]}
    assert ModelConfig.from_dict({**values, "rope_parameters": parameters}) == old
    plain = ModelConfig.from_dict(
        {**values, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    )
    assert (plain.rope_theta, plain.rope_scaling) == (5e5, None)


def test_yarn_without_a_factor_takes_it_from_the_two_contexts() -> None:
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 32768}
    config = ModelConfig.from_dict(small(rope_scaling=scaling))
    assert config.rope_scaling is not None
    assert config.rope_scaling["factor"] == 4.0


def test_the_other_name_of_yarns_factor_is_not_overlooked() -> None:
    # As published with DeepSeek-R1-0528-Qwen3-8B: the inverse of 0.1 ln(4) + 1, together 1.
    scaling = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "attn_factor": 0.8782488562869419,
    }
    config = ModelConfig.from_dict({**QWEN3_8B, "rope_scaling": scaling})
    cos_Tr, _ = Rope(config)(torch.tensor([0]))
    torch.testing.assert_close(cos_Tr, torch.ones(1, 64))
    assert config.to_dict()["rope_scaling"]["attention_factor"] == pytest.approx(1.0)


def test_differences_between_families_are_read_off_the_config() -> None:
    qwen2, qwen3 = ModelConfig.from_dict(QWEN25_72B), ModelConfig.from_dict(QWEN3_8B)
    v3, llama = ModelConfig.from_dict(DEEPSEEK_V3), ModelConfig.from_dict(LLAMA_31_8B)
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm) == (True, False, False)
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.qk_norm) == (False, False, True)
    assert (v3.is_mla, v3.is_moe, v3.has_mtp) == (True, True, True)
    assert (llama.is_mla, llama.is_moe, llama.has_mtp) == (False, False, False)
    assert llama.eos_token_ids == (128001, 128008, 128009)
    assert v3.eos_token_ids == (1,)
    assert v3.dtype == "bfloat16"
    assert not v3.is_moe_layer(2)
    assert v3.is_moe_layer(3)


REFUSED: dict[str, tuple[Any, str]] = {
    "not_an_object": ([1, 2], "top level"),
    "no_architecture": ({"hidden_size": 64}, "llama, qwen2, qwen3, deepseek_v2, deepseek_v3"),
    "unknown_architecture": (small(model_type="mamba"), "'mamba'"),
    "architecture_on_two_lines": (small(model_type="a\nb"), "unknown architecture"),
    "architecture_is_a_list": (small(model_type=["llama"]), "unknown architecture"),
    "missing_width": ({"model_type": "llama"}, "hidden_size is missing"),
    "zero_layers": (small(num_hidden_layers=0), "num_hidden_layers"),
    "negative_vocabulary": (small(vocab_size=-5), "vocab_size"),
    "huge_vocabulary": (small(vocab_size=2**40), "vocab_size"),
    "number_of_5000_digits": (small(hidden_size=10**5000), "hidden_size"),
    "width_is_text": (small(hidden_size="4096"), "hidden_size"),
    "width_is_true": (small(hidden_size=True), "hidden_size"),
    "width_is_a_fraction": (small(hidden_size=64.5), "hidden_size"),
    "heads_do_not_divide": (small(num_key_value_heads=5), "num_key_value_heads"),
    "odd_head": (small(head_dim=31), "head_dim"),
    "epsilon_not_a_number": (small(rms_norm_eps=math.nan), "rms_norm_eps"),
    "theta_infinite": (small(rope_theta=math.inf), "rope_theta"),
    "theta_one": (small(rope_theta=1.0), "rope_theta"),
    "rope_of_another_kind": (small(rope_scaling={"rope_type": "longrope"}), "yarn"),
    "rope_is_a_list": (small(rope_scaling=[1]), "rope_scaling"),
    "rope_by_layer_type": (small(rope_parameters={"full_attention": {}}), "layer type"),
    "linear_without_factor": (small(rope_scaling={"type": "linear"}), "factor is missing"),
    "yarn_factor_zero": (small(rope_scaling={"type": "yarn", "factor": 0}), "factor"),
    "part_of_a_head_rotated": (small(partial_rotary_factor=0.5), "partial_rotary_factor"),
    "other_activation": (small(hidden_act="gelu"), "hidden_act"),
    "sliding_window": ({**QWEN25_72B, "use_sliding_window": True, "max_window_layers": 70}, "slid"),
    "sliding_layer_types": ({**QWEN3_8B, "layer_types": ["sliding_attention"]}, "sliding-window"),
    "groups_do_not_divide": ({**DEEPSEEK_V3, "n_group": 7}, "n_group"),
    "more_groups_kept_than_there_are": ({**DEEPSEEK_V3, "topk_group": 9}, "topk_group"),
    "more_experts_chosen_than_kept": ({**DEEPSEEK_V3, "num_experts_per_tok": 200}, "num_experts"),
    "groups_of_one_expert": ({**DEEPSEEK_V3, "n_group": 256}, "two experts"),
    "unknown_scoring": ({**DEEPSEEK_V3, "scoring_func": "relu"}, "scoring_func"),
    "unknown_routing": ({**DEEPSEEK_V3, "topk_method": "best"}, "topk_method"),
    "v2_without_experts_per_token": (
        {k: v for k, v in DEEPSEEK_V2_LITE.items() if k != "num_experts_per_tok"},
        "num_experts_per_tok is missing",
    ),
    "eos_is_text": (small(eos_token_id="</s>"), "eos_token_id"),
    "tied_is_text": (small(tie_word_embeddings="yes"), "tie_word_embeddings"),
    "a_dtype_nobody_knows": (small(torch_dtype="int3"), "torch_dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built_is_refused_in_one_line(name: str) -> None:
    values, mentioned = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        ModelConfig.from_dict(values)
    assert mentioned in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_token_id_written_as_null_is_none_and_one_left_out_is_the_familys() -> None:
    values = {k: v for k, v in LLAMA_31_8B.items() if "token_id" not in k}
    left_out = ModelConfig.from_dict(values)
    assert (left_out.bos_token_id, left_out.eos_token_ids) == (1, (2,))
    null = ModelConfig.from_dict({**values, "bos_token_id": None, "eos_token_id": None})
    assert (null.bos_token_id, null.eos_token_ids) == (None, ())
    beyond = ModelConfig.from_dict({**values, "bos_token_id": -1, "eos_token_id": [5, 10**9]})
    assert (beyond.bos_token_id, beyond.eos_token_ids) == (None, (5,))


def test_a_window_that_no_layer_uses_is_no_window() -> None:
    ModelConfig.from_dict({**QWEN25_72B, "use_sliding_window": True})
    ModelConfig.from_dict({**QWEN3_8B, "layer_types": ["full_attention"] * 36})


def read(values: dict[str, Any]) -> tuple[ModelConfig | None, str]:
    try:
        return ModelConfig.from_dict(values), ""
    except ModelError as error:
        return None, str(error)


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2, 2**31, 2**63, 2**100, 10**5000]),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "type", "x"]), st.floats(), max_size=3),
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    base=st.sampled_from(sorted(PUBLISHED)),
    changes=st.dictionaries(st.sampled_from(sorted(DEEPSEEK_V3)), HOSTILE, max_size=4),
    scaling=st.dictionaries(
        st.sampled_from(
            sorted([*DEEPSEEK_V3["rope_scaling"], "rope_theta", "truncate", "attn_factor"])
        ),
        HOSTILE,
        max_size=2,
    ),
)
def test_hostile_values_are_refused_or_give_a_model_that_can_be_counted(
    base: str, changes: dict[str, Any], scaling: dict[str, Any]
) -> None:
    values = {**PUBLISHED[base], **changes}
    if scaling and isinstance(values.get("rope_scaling"), dict):
        values["rope_scaling"] = {**values["rope_scaling"], **scaling}
    config, refusal = read(values)
    assert "\n" not in refusal
    if config is None:
        return
    total, active = config.parameter_count()
    assert 0 < active <= total
    assert ModelConfig.from_dict(config.to_dict()) == config
    # Nothing that passes may break the arithmetic of positions.
    cos_Tr, sin_Tr = Rope(config)(torch.tensor([0, 1, 1000]))
    assert cos_Tr.isfinite().all()
    assert sin_Tr.isfinite().all()
