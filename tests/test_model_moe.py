"""Routing and grouped experts against a loop over single tokens and experts, written here."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mull.model.config import ModelConfig
from mull.model.moe import MixtureOfExperts, Router

SHAPE: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 0,
    "n_shared_experts": 2,
}
ROUTINGS: dict[str, dict[str, Any]] = {
    "v3": {},
    "v3_not_normalised": {"norm_topk_prob": False},
    "v2_greedy": {"topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False},
    "v2_grouped": {"topk_method": "group_limited_greedy", "scoring_func": "softmax"},
}


def mixture(dtype: torch.dtype = torch.float32, **changes: Any) -> MixtureOfExperts:
    torch.manual_seed(7)
    module = MixtureOfExperts(ModelConfig.from_dict({**SHAPE, **changes}), dtype=dtype)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.normal_(0, 0.4)
    return module


class ProductCounter(TorchDispatchMode):
    """Counts matrix products and the rows that go into them."""

    products = 0
    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func in (aten.mm.default, aten.mm.out, aten.addmm.default):
            self.products += 1
            self.rows += args[-2].shape[0]
        assert func is not torch.ops.aten.bmm.default
        return func(*args, **(kwargs or {}))


def one_token_by_hand(module: MixtureOfExperts, config: ModelConfig, x_D: Tensor) -> Tensor:
    """DeepSeek-V3 report, equations 12 to 16; V2 report, section 2.2.1 for its group rule."""
    logits_E = module.gate.weight @ x_D
    sigmoid = config.scoring_func == "sigmoid"
    affinity_E = torch.sigmoid(logits_E) if sigmoid else torch.softmax(logits_E, 0)
    biased = affinity_E.clone()
    if config.topk_method == "noaux_tc":
        biased = biased + module.gate.e_score_correction_bias
    candidates = list(range(config.n_routed_experts))
    if config.topk_method != "greedy":
        size = config.n_routed_experts // config.n_group
        best_few = 2 if config.topk_method == "noaux_tc" else 1
        groups = [candidates[start : start + size] for start in range(0, len(candidates), size)]
        groups.sort(key=lambda g: -sum(sorted(biased[e].item() for e in g)[-best_few:]))
        candidates = [expert for group in groups[: config.topk_group] for expert in group]
    chosen = sorted(candidates, key=lambda e: -biased[e].item())[: config.num_experts_per_tok]
    gates = {e: affinity_E[e] for e in chosen}
    if config.norm_topk_prob:
        total = sum(gates.values(), torch.tensor(0.0))
        gates = {e: gate / total for e, gate in gates.items()}
    shared = module.shared_experts
    out_D = shared.down_proj.weight @ (
        F.silu(shared.gate_proj.weight @ x_D) * (shared.up_proj.weight @ x_D)
    )
    hidden = config.moe_intermediate_size
    for expert, gate in gates.items():
        both = module.experts.gate_up_proj[expert] @ x_D
        inner = F.silu(both[:hidden]) * both[hidden:]
        out_D = out_D + config.routed_scaling_factor * gate * (
            module.experts.down_proj[expert] @ inner
        )
    return out_D


@pytest.mark.parametrize("routing", ROUTINGS)
def test_grouped_experts_equal_one_token_at_a_time(routing: str) -> None:
    module = mixture(**ROUTINGS[routing])
    config = ModelConfig.from_dict({**SHAPE, **ROUTINGS[routing]})
    x_TD = torch.randn(40, 24)
    expected_TD = torch.stack([one_token_by_hand(module, config, x_D) for x_D in x_TD])
    torch.testing.assert_close(module(x_TD), expected_TD, rtol=1e-4, atol=1e-5)


def test_the_bias_selects_but_never_weighs() -> None:
    router = Router(ModelConfig.from_dict({**SHAPE, "norm_topk_prob": False}))
    x_TD = torch.randn(20, 24)
    router.e_score_correction_bias[:] = -100.0
    favoured = [0, 1, 2]  # one whole group
    router.e_score_correction_bias[favoured] = 100.0
    weights_TS, experts_TS = router(x_TD)
    assert experts_TS.sort(dim=-1).values.tolist() == [favoured] * 20
    scores_TE = torch.sigmoid(x_TD @ router.weight.T)
    torch.testing.assert_close(weights_TS, 2.5 * scores_TE.gather(1, experts_TS))


def test_only_chosen_experts_are_computed_one_product_each() -> None:
    module = mixture()
    x_TD = torch.randn(5, 24)
    weights_TS, experts_TS = module.gate(x_TD)
    with ProductCounter() as counter:
        module.experts(x_TD, weights_TS, experts_TS)
    assert counter.products == 2 * len(experts_TS.unique())  # gate with up, and down
    # No row but the chosen ones goes through an expert.
    assert counter.rows == 2 * experts_TS.numel()
    assert len(experts_TS.unique()) < 12


def test_gradients_equal_those_of_one_token_at_a_time() -> None:
    module = mixture()
    config = ModelConfig.from_dict(SHAPE)
    x_TD = torch.randn(24, 24, requires_grad=True)
    aim_TD = torch.randn(24, 24)
    tensors = [x_TD, *module.parameters()]
    ours = torch.autograd.grad(((module(x_TD) - aim_TD) ** 2).sum(), tensors)
    expected_TD = torch.stack([one_token_by_hand(module, config, x_D) for x_D in x_TD])
    theirs = torch.autograd.grad(((expected_TD - aim_TD) ** 2).sum(), tensors)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_a_bfloat16_router_still_reckons_in_float32() -> None:
    module = mixture(torch.bfloat16)
    assert module.gate.e_score_correction_bias.dtype == torch.float32
    weights_TS, _ = module.gate(torch.randn(4, 24, dtype=torch.bfloat16))
    assert weights_TS.dtype == torch.float32
    assert module(torch.randn(4, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_no_tokens_give_no_rows() -> None:
    assert mixture()(torch.zeros(0, 24)).shape == (0, 24)
