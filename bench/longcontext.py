"""Claim: mull keeps 60 % of its rate when batch 8 grows to 1,000 tokens of context.

Tokens per second at short and long contexts, greedy, speculation off, everybody in turn.
Run: .venv/bin/python bench/longcontext.py [--quick] [--json]
"""

from __future__ import annotations

import argparse

from options import add_arguments
from rounds import Job
from tell import run

CONTENDERS = "mull:bf16,mull:q8,mull:q4,mull:q4+int8,llama.cpp:q4_0,dasllama:q8_0,openvino:q4_0"
SHAPES = ((8, 16), (8, 1000), (1, 16), (1, 4096))  # batch, context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, contenders=CONTENDERS, rounds=4)
    parser.add_argument("--steps", type=int, default=32, help="tokens of each sequence")
    args = parser.parse_args()
    shapes = ((2, 16), (2, 200)) if args.quick else SHAPES
    jobs = [
        Job(
            f"decode, batch {batch} at {context} tokens",
            "decode",
            {"batch": batch, "steps": args.steps, "context_tokens": context},
        )
        for batch, context in shapes
    ]
    run(args, jobs)


if __name__ == "__main__":
    main()
