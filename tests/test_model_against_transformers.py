"""Logits of all five families equal transformers' at every one of 1,024 positions.

Random small models in float32 against transformers' eager attention; the original context of the
scaled ones is 256, so most positions lie beyond it.
"""

import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mull.model import CausalLM, ModelConfig, PackedSequences
from mull.model.moe import Router

POSITIONS = 1024
TOLERANCE = 1e-4

GQA = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
MLA = {
    **GQA,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
}
V2 = {**MLA, "model_type": "deepseek_v2", "topk_method": "greedy"}
V3 = {**MLA, "model_type": "deepseek_v3", "n_group": 4, "topk_group": 2}
GROUPED_V2 = {"topk_method": "group_limited_greedy"}
LLAMA = {**GQA, "model_type": "llama"}
QWEN2 = {**GQA, "model_type": "qwen2", "rms_norm_eps": 1e-6}
QWEN3 = {**GQA, "model_type": "qwen3", "head_dim": 24}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256}
DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 256,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
V2_YARN = {**DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}
UNEVEN_YARN = {**DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 0.5, "factor": 4.0}
YARN_BY_HAND = {**YARN, "attention_factor": 1.3, "truncate": False, "beta_fast": 16.0}

CASES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama_tied": {**LLAMA, "tie_word_embeddings": True},
    "llama_one_key_head_per_query_head": {**LLAMA, "num_key_value_heads": 4},
    "llama_one_key_head": {**LLAMA, "num_key_value_heads": 1},
    "llama_biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama_wide_heads": {**LLAMA, "head_dim": 32, "rope_theta": 500000.0},
    "llama_linear": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama_llama3": {**LLAMA, "rope_scaling": LLAMA3_ROPE, "rope_theta": 5000.0},
    "llama_yarn": {**LLAMA, "rope_scaling": YARN},
    # The ramp's end lies beyond the last pair: theta under 256 / 2 pi.
    "llama_yarn_quick_theta": {**LLAMA, "rope_scaling": YARN, "rope_theta": 20.0},
    "qwen2": QWEN2,
    "qwen2_tied": {**QWEN2, "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen2_yarn": {**QWEN2, "rope_scaling": YARN},
    "qwen2_yarn_by_hand": {**QWEN2, "rope_scaling": YARN_BY_HAND},
    "qwen3": QWEN3,
    "qwen3_tied_biases": {**QWEN3, "tie_word_embeddings": True, "attention_bias": True},
    "qwen3_yarn": {**QWEN3, "rope_scaling": YARN},
    "qwen3_linear": {**QWEN3, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "v2": V2,
    "v2_no_q_latent": {**V2, "q_lora_rank": None, "n_shared_experts": 2},
    "v2_no_q_latent_yarn": {**V2, "q_lora_rank": None, "rope_scaling": V2_YARN},
    "v2_grouped_4_of_8": {**V2, **GROUPED_V2, "n_group": 8, "topk_group": 4},
    "v2_grouped_1_of_2_scaled": {
        **V2,
        **GROUPED_V2,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 16.0,
        "rope_scaling": V2_YARN,
    },
    "v2_biases": {**V2, "attention_bias": True, "mlp_bias": True},
    "v2_all_dense": {**V2, "first_k_dense_replace": 3, "tie_word_embeddings": True},
    "v3": V3,
    "v3_tied": {**V3, "tie_word_embeddings": True},
    "v3_no_q_latent": {**V3, "q_lora_rank": None},
    "v3_yarn": {**V3, "rope_scaling": DEEPSEEK_YARN},
    "v3_yarn_uneven_mscale": {**V3, "rope_scaling": UNEVEN_YARN},
    "v3_yarn_without_mscale": {**V3, "rope_scaling": YARN},
    "v3_one_group": {**V3, "n_group": 1, "topk_group": 1},
    "v3_2_of_8_groups": {**V3, "n_group": 8, "topk_group": 2},
    "v3_three_shared_experts": {**V3, "n_shared_experts": 3, "first_k_dense_replace": 0},
    "v3_gates_not_normalised": {**V3, "norm_topk_prob": False, "routed_scaling_factor": 1.5},
    "v3_biases": {**V3, "attention_bias": True},
    "v3_rope_in_halves": {**V3, "rope_interleave": False},
    "v3_one_expert_a_token": {**V3, "num_experts_per_tok": 1, "norm_topk_prob": False},
}


# A greedy router has no groups to speak of, and transformers claims an MTP module nobody asked for.
SAID_DIFFERENTLY = {"architectures", "dtype", "n_group", "topk_group", "num_nextn_predict_layers"}


def oracle(values: dict[str, Any], seed: int) -> Any:
    """A transformers model whose logits and routes are far from trivial."""
    config = AutoConfig.for_model(**json.loads(json.dumps(values)))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            centre = 1.0 if "norm" in name else 0.0
            tensor.normal_(centre, 0.2, generator=draw)
        elif "embed" in name:
            tensor.normal_(0, 1.0, generator=draw)
        else:
            tensor.normal_(0, 1.2 / tensor.shape[-1] ** 0.5, generator=draw)
    return model


@functools.cache
def both(case: str, seed: int) -> tuple[Any, CausalLM, torch.Tensor, torch.Tensor]:
    """(oracle, ours with its weights, ids, the oracle's logits [T, V]), where no rounding can turn
    a choice of experts."""
    while True:
        theirs = oracle(CASES[case], seed)
        ours = CausalLM(ModelConfig.from_dict(CASES[case]))
        ours.load_state_dict(theirs.state_dict())
        draw = torch.Generator().manual_seed(seed + 1000)
        ids_T = torch.randint(0, 160, (POSITIONS,), generator=draw)
        if not has_near_tie(ours, ids_T):
            break
        seed += 100
    with torch.no_grad():
        expected_TV = theirs(ids_T[None]).logits[0]
    return theirs, ours, ids_T, expected_TV


def has_near_tie(model: CausalLM, ids_T: torch.Tensor) -> bool:
    """Whether changes of 2e-6 in a router's affinities would send any token to other experts."""
    draw, found = torch.Generator().manual_seed(0), []

    def look(router: Router, given: tuple[torch.Tensor], _: Any) -> None:
        ranks_TE = router.scores(given[0])
        chosen_TS = router._choose(ranks_TE).sort(-1).values
        for _ in range(4):
            noise_TE = (torch.rand(ranks_TE.shape, generator=draw) - 0.5) * 4e-6
            other_TS = router._choose(ranks_TE + noise_TE).sort(-1).values
            found.append(not torch.equal(chosen_TS, other_TS))

    routers = [module for module in model.modules() if isinstance(module, Router)]
    hooks = [router.register_forward_hook(look) for router in routers]
    our_logits(model, ids_T, absorb=False)
    for hook in hooks:
        hook.remove()
    return any(found)


def our_logits(model: CausalLM, ids_T: torch.Tensor, *, absorb: bool) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(ids_T, PackedSequences([len(ids_T)], absorb=absorb)))


def worst(a_TV: torch.Tensor, b_TV: torch.Tensor) -> float:
    return (a_TV - b_TV).abs().max().item()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and lose much when it has to wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SEEDS = [(case, 0) for case in CASES] + [
    (case, seed)
    for case in ("llama_llama3", "qwen2_yarn", "qwen3", "v2_grouped_4_of_8", "v3_yarn")
    for seed in (1, 2)
]


@pytest.mark.parametrize(("case", "seed"), SEEDS)
def test_logits_equal_transformers_at_every_position(case: str, seed: int) -> None:
    _, ours, ids_T, expected_TV = both(case, seed)
    assert expected_TV.std() > 0.5, "the oracle's logits are trivial"
    logits_TV = our_logits(ours, ids_T, absorb=False)
    assert logits_TV.dtype == torch.float32
    assert worst(logits_TV, expected_TV) < TOLERANCE


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("v")])
def test_absorbed_attention_equals_transformers_at_every_position(case: str) -> None:
    # Not seed 0: there "v3" has two groups of experts at one position that tie to the last bit of
    # float32, so that the order of additions, which absorbing changes, decides the route.
    _, ours, ids_T, expected_TV = both(case, 1)
    assert worst(our_logits(ours, ids_T, absorb=True), expected_TV) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_config_reads_and_writes_what_transformers_reads_and_writes(case: str) -> None:
    theirs, ours, _, _ = both(case, 0)
    from_theirs = ModelConfig.from_dict(json.loads(theirs.config.to_json_string(use_diff=False)))
    assert ModelConfig.from_dict(ours.config.to_dict()) == ours.config
    assert from_theirs.rope_scaling == ours.config.rope_scaling
    again = AutoConfig.for_model(**json.loads(json.dumps(ours.config.to_dict())))
    assert again.rope_parameters["rope_type"] == theirs.config.rope_parameters["rope_type"]
    known = theirs.config.to_dict().keys() & ours.config.to_dict().keys()
    for name in known - SAID_DIFFERENTLY:
        assert getattr(again, name) == getattr(theirs.config, name), name


@pytest.mark.parametrize("case", ["llama_llama3", "qwen3_yarn", "v2_grouped_4_of_8", "v3_yarn"])
def test_a_model_built_from_our_config_json_gives_transformers_the_same_logits(case: str) -> None:
    theirs, ours, ids_T, expected_TV = both(case, 0)
    config = AutoConfig.for_model(**json.loads(json.dumps(ours.config.to_dict())))
    again = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    again.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert worst(again(ids_T[None]).logits[0], expected_TV) < 1e-6


@pytest.mark.parametrize("case", ["llama", "qwen2_yarn", "qwen3", "v2_no_q_latent", "v3_yarn"])
@pytest.mark.parametrize("absorb", [False, True])
def test_packed_documents_equal_transformers_one_at_a_time(case: str, absorb: bool) -> None:
    theirs, ours, ids_T, _ = both(case, 0)
    lengths = [1, 300, 17, 2, 64]
    documents = ids_T[: sum(lengths)].split(lengths)
    seqs = PackedSequences(lengths, absorb=absorb)
    with torch.no_grad():
        packed_TV = ours.logits(ours(torch.cat(documents), seqs))
        alone_TV = torch.cat([theirs(document[None]).logits[0] for document in documents])
    assert worst(packed_TV, alone_TV) < TOLERANCE
