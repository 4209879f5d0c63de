"""Claim: a training step of a small DeepSeek-architecture model is faster than transformers'
DeepseekV3 of the same size, on the same batch, with the same weights and optimiser.

By how much is bounded: transformers' own step is about a third of the float32 peak, mull's a half.

Latent attention, 8 routed experts of which 2 work for a token, 1 shared; sequences of 60 to 150
tokens, as in the `nano` recipe. transformers gets them padded, as its trainers give them, in the
attention and the experts it is fastest with here. Both minimise cross-entropy with AdamW in
float32; mull's step also clips and counts. Run: .venv/bin/python bench/train_step.py [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mull.kernels.peaks import measure_peaks
from mull.model import CausalLM, ModelConfig
from mull.train.algorithms import sft
from mull.train.batch import Batch, Example
from mull.train.recipe_parts import Optimiser
from mull.train.step import Learner, StepReport


def nano_config(width: int, layers: int, experts: int, chosen: int) -> ModelConfig:
    return ModelConfig.from_dict(
        {
            "model_type": "deepseek_v3",
            "vocab_size": 512,
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "kv_lora_rank": 64,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "n_routed_experts": experts,
            "num_experts_per_tok": chosen,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 2 * width // chosen,
            "first_k_dense_replace": 1,
            "max_position_embeddings": 1024,
        }
    )


def examples(tokens: int, vocabulary: int, seed: int) -> list[Example]:
    draw, made, total = random.Random(seed), [], 0
    while total < tokens:
        length = draw.randint(60, 150)
        made.append(Example([draw.randrange(vocabulary) for _ in range(length)], [True] * length))
        total += length
    return made


def ours(model: CausalLM, batch: list[Example]) -> Callable[[], StepReport]:
    learner = Learner(model, Optimiser(learning_rate=1e-4, warmup=0), 1000)
    return lambda: learner.step([Batch.pack(batch)], sft)


def theirs(model: Any, batch: list[Example]) -> Callable[[], float]:
    longest = max(len(each.ids) for each in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, each in enumerate(batch):
        ids[row, : len(each.ids)] = torch.tensor(each.ids)
        mask[row, : len(each.ids)] = 1
    labels = ids.masked_fill(mask == 0, -100)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def peer(model: CausalLM, attention: str, experts: str) -> Any:
    config = AutoConfig.for_model(**json.loads(json.dumps(model.config.to_dict())))
    made = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, experts_implementation=experts
    )
    made.load_state_dict(model.state_dict())
    return made.float().train()


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--experts", type=int, default=8, help="of a layer")
    parser.add_argument("--chosen", type=int, default=2, help="experts of a token")
    parser.add_argument("--tokens", type=int, default=8192, help="of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = CausalLM(nano_config(args.width, args.layers, args.experts, args.chosen))
    model.init_weights()
    batch = examples(args.tokens, 512, seed=1)
    contenders: dict[str, Callable[[], object]] = {
        f"transformers, {attention}, {experts}": theirs(peer(model, attention, experts), batch)
        for attention in ("eager", "sdpa")
        for experts in ("eager", "grouped_mm")
    }
    mull_step = ours(model, batch)
    contenders = {"mull": mull_step, **contenders}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():
        step()
    peaks = measure_peaks()
    for _ in range(args.rounds):
        for name, step in contenders.items():
            times[name].append(seconds(step))
    peaks = peaks.best_of(measure_peaks())
    report = mull_step()
    tokens, median = report.tokens, {n: statistics.median(t) for n, t in times.items()}
    fastest = min((n for n in median if n != "mull"), key=median.__getitem__)
    result = {
        "tokens": tokens,
        "parameters": model.config.parameter_count(),
        "tokens_per_s": {name: round(tokens / value) for name, value in median.items()},
        "spread": {n: round((max(t) - min(t)) / median[n], 3) for n, t in times.items()},
        "speedup": round(median[fastest] / median["mull"], 2),
        "utilisation": round(report.flops / median["mull"] / peaks.fp32_gflop_per_s / 1e9, 3),
        "fp32_gflop_per_s": peaks.fp32_gflop_per_s,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{tokens} tokens a step, {result['parameters']} parameters (total, active)")
    for name, value in median.items():
        print(f"{name:36s} {value:7.3f} s  {tokens / value:8,.0f} tokens/s")
    print(f"mull / {fastest}: {result['speedup']}x; {peaks.in_words()}")
    print(f"mull uses {result['utilisation']:.0%} of the fp32 peak")


if __name__ == "__main__":
    main()
