"""Tiny random models and batches that the tests of training share."""

from typing import Any

import torch

from mull.model import CausalLM, ModelConfig
from mull.train.batch import Batch, Example

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
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
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
}
SHAPES = {"llama": LLAMA, "deepseek": DEEPSEEK}


def fresh_model(shape: dict[str, Any], *, mtp: bool = False, seed: int = 0) -> CausalLM:
    """float32, weights large enough that routes and predictions are far from trivial."""
    config = ModelConfig.from_dict({**shape, "initializer_range": 0.15})
    model = CausalLM(config, mtp=mtp)
    model.init_weights(generator=torch.Generator().manual_seed(seed))
    return model


def example(length: int, seed: int, *, prompt: int = 1, vocabulary: int = 50) -> Example:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (length,), generator=draw).tolist()
    return Example(ids, [False] * prompt + [True] * (length - prompt))


def packed(lengths: list[int], seed: int = 0, *, prompt: int = 1) -> Batch:
    return Batch.pack(
        [example(n, seed * 1000 + i, prompt=min(prompt, n)) for i, n in enumerate(lengths)]
    )
