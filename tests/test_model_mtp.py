"""Multi-token prediction against equation 21 of the DeepSeek-V3 report, worked out anew here."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mull.model import CausalLM, ModelConfig, PackedSequences

SHAPE: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
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
    "num_nextn_predict_layers": 2,
}


def model_with_mtp(**changes: Any) -> CausalLM:
    torch.manual_seed(3)
    model = CausalLM(ModelConfig.from_dict({**SHAPE, **changes}), mtp=True)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model


def norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x: Tensor, position: int) -> Tensor:
    """RoPE on pairs (0, 1), (2, 3), ... as complex numbers, theta 10,000."""
    pairs = torch.view_as_complex(x.reshape(-1, 2).contiguous())
    angles = position * 10000.0 ** (-torch.arange(len(pairs)) * 2 / len(x))
    return torch.view_as_real(pairs * torch.polar(torch.ones(len(pairs)), angles)).flatten()


def latent_attention(w: dict[str, Tensor], x_TD: Tensor) -> Tensor:
    """Equations 1 to 11 of the report, a head and a position at a time."""
    heads, nope, roped, value, rank = 2, 8, 4, 10, 12
    q = norm(x_TD @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"]) @ w["q_b_proj.weight"].T
    joint = x_TD @ w["kv_a_proj_with_mqa.weight"].T
    kv = norm(joint[:, :rank], w["kv_a_layernorm.weight"]) @ w["kv_b_proj.weight"].T
    rows = []
    for t in range(len(x_TD)):
        outs = []
        for head in range(heads):
            own = q[t, head * (nope + roped) :][: nope + roped]
            query = torch.cat((own[:nope], turned(own[nope:], t)))
            scores, values = [], []
            for s in range(t + 1):
                expanded = kv[s, head * (nope + value) :][: nope + value]
                key = torch.cat((expanded[:nope], turned(joint[s, rank:], s)))
                scores.append(query @ key / math.sqrt(nope + roped))
                values.append(expanded[nope:])
            outs.append(torch.softmax(torch.stack(scores), 0) @ torch.stack(values))
        rows.append(torch.cat(outs))
    return torch.stack(rows) @ w["o_proj.weight"].T


def by_equation_21(model: CausalLM, depth: int, h_TD: Tensor, next_ids_T: Tensor) -> Tensor:
    """h of this depth before the head's norm; embedding's half of M first, as in the checkpoint."""
    w = dict(model.mtp[depth].state_dict())
    embedded_TD = model.model.embed_tokens.weight[next_ids_T]
    m_for_embedding, m_for_h = w["eh_proj.weight"][:, :32], w["eh_proj.weight"][:, 32:]
    x_TD = norm(h_TD, w["hnorm.weight"]) @ m_for_h.T
    x_TD = x_TD + norm(embedded_TD, w["enorm.weight"]) @ m_for_embedding.T
    attention = {k.removeprefix("self_attn."): v for k, v in w.items() if k.startswith("self_attn")}
    x_TD = x_TD + latent_attention(attention, norm(x_TD, w["input_layernorm.weight"]))
    # The expert layer itself is tested by itself in test_model_moe.
    return x_TD + model.mtp[depth].mlp(norm(x_TD, w["post_attention_layernorm.weight"]))


@pytest.mark.parametrize("absorb", [False, True])
def test_mtp_logits_equal_equation_21(absorb: bool) -> None:
    model = model_with_mtp()
    ids_T = torch.randint(0, 64, (24,), generator=torch.Generator().manual_seed(5))
    seqs = PackedSequences([22], absorb=absorb)
    with torch.no_grad():
        ours_TD = theirs_TD = model(ids_T[:22], seqs)
        for depth in (0, 1):
            next_ids_T = ids_T[depth + 1 : depth + 23]
            ours_TD = model.mtp_hidden(ours_TD, next_ids_T, seqs, depth)
            final = model.mtp[depth].shared_head.norm.weight
            theirs_TD = norm(by_equation_21(model, depth, theirs_TD, next_ids_T), final)
            expected_TV = theirs_TD @ model.lm_head.weight.T
            assert expected_TV.std() > 0.5
            assert (model.logits(ours_TD) - expected_TV).abs().max() < 1e-4


def test_mtp_of_packed_documents_equals_one_at_a_time() -> None:
    model = model_with_mtp()
    lengths = [5, 1, 9]
    ids, following = torch.randint(0, 64, (15,)), torch.randint(0, 64, (15,))
    with torch.no_grad():
        seqs = PackedSequences(lengths)
        packed_TD = model.mtp_hidden(model(ids, seqs), following, seqs)
        alone = [
            model.mtp_hidden(model(i, PackedSequences([len(i)])), f, PackedSequences([len(i)]))
            for i, f in zip(ids.split(lengths), following.split(lengths), strict=True)
        ]
    torch.testing.assert_close(packed_TD, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_mtp_shares_embedding_and_head_with_the_model() -> None:
    model = model_with_mtp()
    ids_T = torch.arange(6)
    seqs = PackedSequences([6])
    model.logits(model.mtp_hidden(model(ids_T, seqs), ids_T, seqs)).sum().backward()
    assert not [name for name in model.mtp.state_dict() if "embed" in name or "head.head" in name]
    for parameter in (model.lm_head.weight, model.model.embed_tokens.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_a_model_built_without_mtp_has_none_of_its_tensors() -> None:
    model = CausalLM(ModelConfig.from_dict(SHAPE), device="meta")
    assert not [name for name in model.state_dict() if "mtp" in name or "eh_proj" in name]
