"""Claim: mull decodes SmolLM2-135M at 1.5x the best peer alone and 1.4x to 1.8x in batches.

Tokens per second by batch size from short prompts, greedy, speculation off, everybody in turn; best
format of each peer. Ours runs through the whole engine. Shares: bytes of weights and cache against
the read bandwidth measured just before, operations against the peak of the precision's arithmetic.
Run: .venv/bin/python bench/decode.py [--quick] [--json]
"""

from __future__ import annotations

import argparse

from options import add_arguments
from rounds import Job
from tell import run

CONTENDERS = (
    "mull:bf16,mull:q8,mull:q4,llama.cpp:q4_0,llama.cpp:q8_0,dasllama:q8_0,openvino:q4_0,"
    "transformers:bf16"
)
PROMPT_TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, contenders=CONTENDERS, rounds=4)
    parser.add_argument("--batches", default="1,4,8,16,32")
    parser.add_argument("--steps", type=int, default=48, help="tokens of each sequence")
    args = parser.parse_args()
    if args.quick:
        args.batches, args.steps = "1,4", 8
    jobs = [
        Job(
            f"decode, batch {batch}",
            "decode",
            {"batch": int(batch), "steps": args.steps, "context_tokens": PROMPT_TOKENS},
        )
        for batch in args.batches.split(",")
    ]
    run(args, jobs)


if __name__ == "__main__":
    main()
