"""The mapping between checkpoint tensors and module tensors loses and invents nothing."""

import pytest
import torch

from mull.model.checkpoint_names import Slot, checkpoint_slots, is_known_surplus, slot_for
from mull.model.config import ModelConfig
from mull.model.transformer import CausalLM

CONFIG = ModelConfig.from_dict(
    {
        "model_type": "deepseek_v3",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 12,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1,
    }
)


def test_both_directions_of_the_mapping_agree_and_cover_every_tensor_once() -> None:
    state = CausalLM(CONFIG, mtp=True).state_dict()
    slots = checkpoint_slots(state, CONFIG)
    for tensor in state.values():
        tensor.zero_()
    for name, slot in slots.items():
        assert slot_for(name, CONFIG) == slot
        part = slot.of(state[slot.parameter])
        assert part.shape == slot.shape(state[slot.parameter].shape)
        if not slot.is_copy:
            part.add_(1)
    assert all((tensor == 1).all() for tensor in state.values())


def test_names_and_shapes_are_those_of_the_published_checkpoint() -> None:
    model = CausalLM(CONFIG, mtp=True, device="meta")
    slots = checkpoint_slots(model.state_dict(), CONFIG)
    assert slots["model.layers.1.mlp.experts.3.up_proj.weight"] == Slot(
        "model.layers.1.mlp.experts.gate_up_proj", expert=3, half=1
    )
    for name in (
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.2.mlp.shared_experts.down_proj.weight",
        "model.layers.3.eh_proj.weight",
        "model.layers.3.enorm.weight",
        "model.layers.3.mlp.experts.0.gate_proj.weight",
        "model.layers.3.shared_head.norm.weight",
        "model.layers.3.shared_head.head.weight",
        "model.layers.3.embed_tokens.weight",
    ):
        assert name in slots


def test_gate_and_up_land_where_the_expert_reads_them() -> None:
    model = CausalLM(CONFIG)
    experts = model.model.layers[1].mlp.experts
    gate, up, down = torch.randn(12, 16), torch.randn(12, 16), torch.randn(16, 12)
    for kind, matrix in (("gate", gate), ("up", up), ("down", down)):
        slot = slot_for(f"model.layers.1.mlp.experts.2.{kind}_proj.weight", CONFIG)
        assert slot is not None
        slot.of(model.state_dict()[slot.parameter]).copy_(matrix)
    x_SD = torch.randn(5, 16)
    expected = (torch.nn.functional.silu(x_SD @ gate.T) * (x_SD @ up.T)) @ down.T
    only_2 = torch.full((5, 1), 2)
    made = experts(x_SD, torch.ones(5, 1), only_2)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.4.mlp.gate.weight",
        "model.layers.1.mlp.experts.4.up_proj.weight",
        "model.layers.1.mlp.experts.gate_up_proj",
        "mtp.0.eh_proj.weight",
        "model.layers.999999999999999999999.x",
    ],
)
def test_a_name_without_a_place_gets_no_slot_or_a_parameter_that_does_not_exist(name: str) -> None:
    state = CausalLM(CONFIG, mtp=True, device="meta").state_dict()
    slot = slot_for(name, CONFIG)
    assert slot is None or slot.parameter not in state


def test_known_surplus_is_only_what_published_files_really_hold() -> None:
    assert is_known_surplus("model.layers.0.self_attn.rotary_emb.inv_freq", CONFIG)
    assert is_known_surplus("model.layers.3.eh_proj.weight", CONFIG)
    assert not is_known_surplus("lm_head.weight", CONFIG)
    assert not is_known_surplus("model.layers.4.eh_proj.weight", CONFIG)
    assert not is_known_surplus("model.layers.2.surprise.weight", CONFIG)
