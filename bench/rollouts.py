"""Claim: mull samples 64 answers at once at 1.5x the best peer's batched rate, and says how far the
log-probabilities of each precision are from the float32 model's.

Ours are answers to short questions, 8 to each, temperature 1, log-probabilities kept, as in
reinforcement learning. The peers only decode 64 sequences of the same lengths and sample nothing.
Afterwards every sampled token is scored by the float32 model without a cache.
Run: .venv/bin/python bench/rollouts.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from contenders import Contender, ContenderError
from options import add_arguments, chosen, ready
from rounds import Job, Results, alternate, table_row
from tell import describe, show_machine, show_row

import mull

CONTENDERS = "mull:bf16,mull:q8,mull:q4,llama.cpp:q4_0,llama.cpp:q8_0,dasllama:q8_0,openvino:q4_0"
GROUP = 8  # answers to each question
QUESTIONS = tuple(f"What is {a} plus {a + 7}? Think step by step." for a in range(10, 400, 49))


def prompts(model: str) -> list[list[int]]:
    with mull.load(model, precision="bf16") as llm:
        return [list(llm.request(question).prompt_ids) for question in QUESTIONS]


def logprob_gaps(llm: mull.LLM, asked: list[list[int]], answers: list[Any]) -> dict[str, float]:
    """Of every sampled token, engine minus float32 model. Their mean estimates the KL divergence
    of the engine's distribution from the model's: tokens come from the engine's own."""
    gaps = []
    for answer in answers:
        prompt, ids = asked[answer["prompt"]], answer["token_ids"]
        logits_TV = llm.logits(prompt + ids[:-1])[len(prompt) - 1 :, : llm.engine.vocabulary]
        exact_T = logits_TV.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        gaps.append(torch.tensor(answer["logprobs"]) - exact_T)
    gap_T = torch.cat(gaps).double()
    return {
        "tokens": len(gap_T),
        "mean_gap": float(gap_T.abs().mean()),
        "max_gap": float(gap_T.abs().max()),
        "kl": float(gap_T.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, contenders=CONTENDERS, rounds=3)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    args = parser.parse_args()
    asked = prompts(args.model)
    each = 1 if args.quick else GROUP
    tokens = 8 if args.quick else args.tokens
    batch, longest = each * len(asked), max(map(len, asked))
    job = Job(
        f"{batch} sequences of {tokens} tokens",
        "rollout",
        {"prompts": asked, "each": each, "tokens": tokens, "context_tokens": longest},
    )
    start = time.perf_counter()
    held = batch * (longest + tokens + 64)
    setting = chosen(args, cache_tokens=held)
    gaps: dict[str, dict[str, float]] = {}
    with ready(args.contenders, setting) as (running, absent):
        results: Results = alternate([job], running, 1 if args.quick else args.rounds)
        ours = [contender for contender in running if contender.is_ours]
        row = table_row(job, results, [contender.word for contender in ours])
        sampled = {contender.word: sample(contender, job) for contender in ours}
        machine = describe(results, args.threads, args.rounds)
    with mull.load(args.model, precision="fp32") as exact:
        for word, answers in sampled.items():
            gaps[word] = logprob_gaps(exact, asked, answers)
    machine["seconds"] = round(time.perf_counter() - start)
    del row["prompts"]
    if args.json:
        found = {"machine": machine, "results": [row], "logprob_gaps": gaps}
        print(json.dumps(found | {"absent": absent, "failed": results.failed}, indent=2))
        return
    show_row(row)
    for word, gap in gaps.items():
        print(
            f"  {word:<20}log-probabilities of {gap['tokens']:,} tokens against float32: "
            f"mean gap {gap['mean_gap']:.4f}, max {gap['max_gap']:.3f}, KL {gap['kl']:.5f}"
        )
    show_machine(machine)


def sample(contender: Contender, job: Job) -> list[Any]:
    answer = contender.ask(job.do, seed=7, **job.request)
    if answer is None:
        raise ContenderError(f"{contender.word} gives no answers")
    return list(answer["answers"])


if __name__ == "__main__":
    main()
