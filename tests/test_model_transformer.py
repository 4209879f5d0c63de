"""The assembled model: building, tying, starting weights, gradients, and packing without mixing."""

import math
from typing import Any

import pytest
import torch

from mull.errors import ModelError
from mull.model import CausalLM, ModelConfig, PackedSequences
from mull.model.rope import Rope, latent_softmax_scale, rotate

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DEEPSEEK: dict[str, Any] = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}
SHAPES = {
    "llama": LLAMA,
    "llama_tied": {**LLAMA, "tie_word_embeddings": True},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 8},
    "deepseek_v2": {
        **DEEPSEEK,
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "topk_method": "greedy",
    },
    "deepseek_v3": DEEPSEEK,
}


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_gradient_descent_reaches_every_parameter(shape: str, absorb: bool) -> None:
    torch.manual_seed(0)
    model = CausalLM(ModelConfig.from_dict(SHAPES[shape]))
    model.init_weights()
    ids_T = torch.randint(0, 50, (64,))
    seqs = PackedSequences([40, 24], absorb=absorb)

    def loss() -> torch.Tensor:
        logits_TV = model.logits(model(ids_T, seqs))
        return torch.nn.functional.cross_entropy(logits_TV[:-1], ids_T[1:])

    before = loss()
    before.backward()
    untouched = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert untouched == []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.05 * parameter.grad
    assert loss() < before


@pytest.mark.parametrize("shape", SHAPES)
def test_both_forms_of_attention_have_the_same_gradients(shape: str) -> None:
    torch.manual_seed(1)
    model = CausalLM(ModelConfig.from_dict(SHAPES[shape]), dtype=torch.float64)
    ids_T, aim_TD = torch.randint(0, 50, (30,)), torch.randn(30, 32, dtype=torch.float64)
    gradients = []
    for absorb in (False, True):
        model.zero_grad()
        (model(ids_T, PackedSequences([30], absorb=absorb)) * aim_TD).sum().backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_document_does_not_see_its_neighbours_nor_its_future(shape: str) -> None:
    model = CausalLM(ModelConfig.from_dict(SHAPES[shape]))
    ids_T = torch.randint(0, 50, (20,))
    changed_T = ids_T.clone()
    changed_T[12] = (changed_T[12] + 1) % 50
    for absorb in (False, True):
        seqs = PackedSequences([7, 9, 4], absorb=absorb)
        moved_T = (model(ids_T, seqs) - model(changed_T, seqs)).abs().amax(dim=-1) > 1e-6
        assert moved_T[12:16].all()
        assert not moved_T[:12].any()
        assert not moved_T[16:].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_from_the_meta_device_equals_one_built_in_memory(shape: str) -> None:
    config = ModelConfig.from_dict(SHAPES[shape])
    with torch.device("meta"):
        model = CausalLM(config, mtp=True)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    model = model.to_empty(device="cpu")
    model.init_weights(generator=torch.Generator().manual_seed(4))
    direct = CausalLM(config, mtp=True)
    direct.init_weights(generator=torch.Generator().manual_seed(4))
    ids_T, seqs = torch.arange(10), PackedSequences([10])
    assert torch.equal(model.logits(model(ids_T, seqs)), direct.logits(direct(ids_T, seqs)))


def test_a_tied_head_is_the_embedding_itself() -> None:
    model = CausalLM(ModelConfig.from_dict(SHAPES["llama_tied"]))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.model.embed_tokens.weight = torch.nn.Parameter(torch.ones(50, 32))
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_stays_near_float32_and_gives_float32_logits(shape: str) -> None:
    torch.manual_seed(2)
    config = ModelConfig.from_dict(SHAPES[shape])
    exact = CausalLM(config)
    rounded = CausalLM(config, dtype=torch.bfloat16)
    rounded.load_state_dict(exact.state_dict())
    ids_T, seqs = torch.randint(0, 50, (16,)), PackedSequences([16])
    logits_TV = rounded.logits(rounded(ids_T, seqs))
    assert logits_TV.dtype == torch.float32
    assert (logits_TV - exact.logits(exact(ids_T, seqs))).abs().mean() < 0.05


def test_the_softmax_scale_of_deepseek_v3_holds_yarns_temperature_squared() -> None:
    scaling = {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    shape = {**DEEPSEEK, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rope_scaling": scaling}
    expected = (0.1 * math.log(40) + 1) ** 2 / math.sqrt(192)
    assert latent_softmax_scale(ModelConfig.from_dict(shape)) == pytest.approx(expected)


def test_rope_is_exact_far_out_and_independent_of_the_default_device() -> None:
    config = ModelConfig.from_dict(LLAMA)
    with torch.device("meta"):
        rope = Rope(config)
    cos_Tr, sin_Tr = rope(torch.tensor([0, 100_000]))
    expected = [100_000 / 10000.0 ** (i / 4) for i in range(4)]
    torch.testing.assert_close(cos_Tr[0], torch.ones(4))
    torch.testing.assert_close(cos_Tr[1], torch.tensor(expected).cos(), rtol=0, atol=0.02)
    torch.testing.assert_close(sin_Tr[1], torch.tensor(expected).sin(), rtol=0, atol=0.02)


def test_the_rope_table_grows_to_the_context_and_holds_what_trigonometry_gives() -> None:
    shape = {**LLAMA, "max_position_embeddings": 5000}
    table, fresh = Rope(ModelConfig.from_dict(shape)), Rope(ModelConfig.from_dict(shape))
    for positions in ([0], [7, 3, 2047], [2048], [1, 4999], [4999, 5000, 70_000], []):
        positions_T = torch.tensor(positions, dtype=torch.int64)
        with torch.inference_mode():
            found = table(positions_T)
        for part, expected in zip(found, fresh._turned(positions_T), strict=True):
            assert torch.equal(part, expected)
        assert len(table._table_2Pr[0]) <= 5000


def test_a_rope_table_made_while_generating_serves_training() -> None:
    rope = Rope(ModelConfig.from_dict(LLAMA))
    with torch.inference_mode():
        rope(torch.tensor([3]))
    x_THr = torch.randn(2, 1, 8, requires_grad=True)
    rotate(x_THr, rope(torch.tensor([0, 5])), interleaved=False).sum().backward()
    assert x_THr.grad is not None


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ModelError):
        PackedSequences([3, 0, 2])
