"""Claim: answers bound to a JSON schema are valid for every one of 200 random schemas, their
thinking stays free, and binding them costs less than a twentieth of the tokens a second.

SmolLM2-135M, thinking switched on with a budget, sampled at the makers' temperature. The speed is
that of one regular expression that allows nearly everything, so that both sides write alike long
answers: alternating rounds, the median, in one process.
Run: .venv/bin/python bench/constrained.py [--schemas 200] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema

import mull

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from schema_parts import random_schema

BATCH = 8
WORDS = {"type": "regex", "regex": r"(.|\n)*"}


def validity(llm: mull.LLM, count: int, think_budget: int) -> dict[str, Any]:
    """Every answer is read and judged by `jsonschema`; nothing is left out."""
    rng = random.Random(2026)
    schemas = [random_schema(rng) for _ in range(count)]
    requests = [
        llm.request(
            f"Make up an example, as JSON, for this schema: {json.dumps(schema)[:1500]}",
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            thinking="on",
            think_budget=think_budget,
            max_tokens=1500,
            seed=i,
        )
        for i, schema in enumerate(schemas)
    ]
    outputs = [group[0] for group in llm.runner.run(requests)]
    wrong: list[str] = []
    for i, (schema, output) in enumerate(zip(schemas, outputs, strict=True)):
        try:
            jsonschema.Draft202012Validator(schema).validate(json.loads(output.text))
        except (ValueError, jsonschema.ValidationError) as error:
            wrong.append(f"schema {i}: {output.finish_reason}: {str(error).splitlines()[0]}")
    return {
        "schemas": count,
        "valid": count - len(wrong),
        "with_thinking": sum(bool(output.thinking.strip()) for output in outputs),
        "thinking_tokens": statistics.mean(o.usage.reasoning_tokens for o in outputs),
        "answer_tokens": statistics.mean(
            o.usage.completion_tokens - o.usage.reasoning_tokens for o in outputs
        ),
        "wrong": wrong,
    }


def speed(llm: mull.LLM, rounds: int) -> dict[str, float]:
    """Tokens a second of a batch, bound and free in turn."""
    rates: dict[str, list[float]] = {"free": [], "bound": []}
    for _ in range(rounds + 1):
        for name in rates:
            requests = [
                llm.request(
                    f"Tell a long story about the number {i}.",
                    response_format=WORDS if name == "bound" else None,
                    max_tokens=64,
                    temperature=0.8,
                    seed=i,
                    ignore_eos=True,
                )
                for i in range(BATCH)
            ]
            start = time.perf_counter()
            outputs = llm.runner.run(requests)
            tokens = sum(group[0].usage.completion_tokens for group in outputs)
            rates[name].append(tokens / (time.perf_counter() - start))
    free, bound = (statistics.median(rates[name][1:]) for name in ("free", "bound"))
    return {"free_tokens_per_s": free, "bound_tokens_per_s": bound, "share": bound / free}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--think-budget", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5, help="of the speed; 0 leaves it out")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with mull.load(args.model, speculation="off") as llm:
        found: dict[str, Any] = {}
        if args.schemas:
            found = validity(llm, args.schemas, args.think_budget)
        if args.rounds:
            found |= speed(llm, args.rounds)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
