"""Claim: on a DeepSeek-architecture model mull decodes at 1.3x llama.cpp alone, 2x in a batch of 8
and at 4,096 tokens of context, computes prompts at 2x, and is 5x and 2x as fast as transformers.

The model is written by moe_model.py once: latent attention, 64 routed experts of which 6 work for a
token, 2 shared ones, 1.55 billion random weights. llama.cpp gets them as GGUF, transformers as they
are. Run: .venv/bin/python bench/moe.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from options import add_arguments
from rounds import Job
from tell import run

CONTENDERS = "mull:q4,mull:q4+int8,mull:q8,llama.cpp:q4_0,llama.cpp:q8_0,transformers:bf16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, contenders=CONTENDERS, rounds=3)
    parser.add_argument("--steps", type=int, default=24, help="tokens of each sequence")
    args = parser.parse_args()
    layers = 2 if args.quick else 7
    args.model = str(written(args.work / f"deepseek-{layers}-layers", layers))
    shapes = ((1, 16),) if args.quick else ((1, 16), (8, 16), (1, 4096))
    jobs = [
        Job(
            f"decode, batch {batch} at {context} tokens",
            "decode",
            {"batch": batch, "steps": args.steps, "context_tokens": context},
        )
        for batch, context in shapes
    ]
    run(args, [*jobs, Job("prefill, 512 tokens", "prefill", {"tokens": 512})])


def written(folder: Path, layers: int) -> Path:
    if not (folder / "config.json").is_file():
        script = Path(__file__).with_name("moe_model.py")
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(script), str(folder), "--layers", str(layers)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


if __name__ == "__main__":
    main()
