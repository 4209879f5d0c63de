"""Small real parts for the engine's tests: random models, a byte-level tokenizer, and a driver."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from mull.engine.engine import Engine
from mull.engine.request import Event, Output, Request
from mull.model.config import ModelConfig
from mull.model.sequences import PackedSequences
from mull.model.transformer import CausalLM
from mull.text.templates import ChatTemplate
from mull.text.tokenizer import Tokenizer

SPECIALS = ["<s>", "</s>", "<think>", "</think>"]
VOCABULARY = 256 + len(SPECIALS)
EOS = 257

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "eos_token_id": EOS,
    "bos_token_id": 256,
}
LLAMA = {**COMMON, "model_type": "llama"}
DEEPSEEK = {
    **COMMON,
    "model_type": "deepseek_v3",
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
    "n_group": 4,
    "topk_group": 2,
}


def tiny_model(shape: dict[str, Any], seed: int = 0, *, mtp: bool = False) -> CausalLM:
    """Random weights large enough that the best token depends on the whole prompt."""
    torch.manual_seed(seed)
    model = CausalLM(ModelConfig.from_dict(shape), mtp=mtp)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.0 if "embed" in name else 1.6 / parameter.shape[-1] ** 0.5)
    return model.eval()


def tiny_tokenizer(folder: Path) -> Tokenizer:
    """One token a byte, in the order of GPT-2's byte alphabet, then SPECIALS."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(text, special=True) for text in SPECIALS])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>"}')
    return Tokenizer.from_folder(folder)


def make_engine(model: CausalLM, tokenizer: Tokenizer, **options: Any) -> Engine:
    options.setdefault("cache_tokens", 8192)
    return Engine(model, tokenizer, ChatTemplate.for_tokenizer(tokenizer), **options)


def drain(engine: Engine) -> tuple[dict[tuple[int, int], Output], list[Event]]:
    """Step until nothing is left; outputs by (request id, sample index), and all events."""
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return collect(events), events


def collect(events: list[Event]) -> dict[tuple[int, int], Output]:
    return {(e.request_id, e.index): e.output for e in events if e.output is not None}


def generate(engine: Engine, requests: list[Request]) -> list[Output]:
    """First samples of the requests, submitted all at once, in order."""
    ids = [engine.submit(request) for request in requests]
    outputs, _ = drain(engine)
    return [outputs[i, 0] for i in ids]


@torch.no_grad()
def packed_logits(model: CausalLM, ids: list[int]) -> torch.Tensor:
    """[T, V] in one forward pass without a cache: the reference."""
    return model.logits(model(torch.tensor(ids), PackedSequences([len(ids)])))


def chain_model(successors: dict[int, int]) -> CausalLM:
    """A real model whose next token depends on the last alone: successors[last], certain.

    Its layers add nothing (their output projections are zero), embedding and head do the rest. For
    tests about what the engine does with tokens, not about which tokens a model picks.
    """
    shape = {**LLAMA, "hidden_size": 2 * ((VOCABULARY + 1) // 2), "num_hidden_layers": 1}
    model = CausalLM(ModelConfig.from_dict({**shape, "head_dim": 16}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        for token in range(VOCABULARY):
            model.model.embed_tokens.weight[token, token] = 1.0
            model.lm_head.weight[successors.get(token, EOS), token] = 10.0
    return model.eval()


def chain_of(tokenizer: Tokenizer, *texts: str) -> CausalLM:
    """The chain model that writes each of `texts` from its first character on, then ends.

    A character may have one successor only, over all texts.
    """
    successors: dict[int, int] = {}
    for text in texts:
        ids = tokenizer.encode(text, allow_special=True)
        for last, following in itertools.pairwise(ids):
            assert successors.setdefault(last, following) == following, text
    return chain_model(successors)
