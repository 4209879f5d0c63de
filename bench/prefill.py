"""Claim: mull computes a prompt of 512 tokens at 1.4x the best peer and 2.5x llama.cpp.

Tokens per second from submitting a prompt to its first token, everybody in turn.
Run: .venv/bin/python bench/prefill.py [--quick] [--json]
"""

from __future__ import annotations

import argparse

from decode import CONTENDERS
from options import add_arguments
from rounds import Job
from tell import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, contenders=CONTENDERS, rounds=5)
    parser.add_argument("--tokens", default="512,2048", help="of the prompt")
    args = parser.parse_args()
    if args.quick:
        args.tokens = "512"
    jobs = [
        Job(f"prefill, {tokens} tokens", "prefill", {"tokens": int(tokens)})
        for tokens in args.tokens.split(",")
    ]
    run(args, jobs)


if __name__ == "__main__":
    main()
