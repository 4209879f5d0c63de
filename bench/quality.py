"""Claim: mull's q8 and q4 lose no more against fp32 than llama.cpp's formats of the same size.

All contenders compute the same windows of a fixed text (documentation texts that come with Python)
from the same weights: those of the model's file, dequantised to float32. At every position their
distribution of the next token is compared with that of the float32 model (KL divergence in nats),
and with the token that came (perplexity). mull runs through its engine and cache.
Run: .venv/bin/python bench/quality.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import Contender, ContenderError
from options import add_arguments, chosen, ready
from text import standard_text, windows
from torch import Tensor

from mull import weights
from mull.text import Tokenizer

REFERENCE = "mull:fp32"
CONTENDERS = (
    "mull:bf16,mull:q8,mull:q4,llama.cpp:q8_0,llama.cpp:q4_1,llama.cpp:q4_0,transformers:fp32"
)
ROWS = 64  # positions compared at once: the float32 copies stay small


@dataclass
class Tally:
    """Sums over all positions of all windows."""

    positions: int = 0
    kl_sum: float = 0.0
    kl_max: float = 0.0
    loss_sum: float = 0.0
    agree: int = 0  # positions where the likeliest token is the reference's
    kl_windows: list[float] = field(default_factory=list)

    def add(self, logits_TV: Tensor, reference_TV: Tensor, ids: list[int]) -> None:
        """logits_TV, reference_TV: float32 [T, V] after each token; the last has no successor."""
        start = self.kl_sum
        for first in range(0, len(ids) - 1, ROWS):
            rows = slice(first, min(first + ROWS, len(ids) - 1))
            q_TV = logits_TV[rows].log_softmax(-1)
            p_TV = reference_TV[rows].log_softmax(-1)
            kl_T = (p_TV.exp() * (p_TV - q_TV)).sum(-1, dtype=torch.float64)
            came_T = torch.tensor(ids[rows.start + 1 : rows.stop + 1])
            self.kl_sum += float(kl_T.sum())
            self.kl_max = max(self.kl_max, float(kl_T.max()))
            self.loss_sum -= float(q_TV.gather(-1, came_T[:, None]).sum(dtype=torch.float64))
            self.agree += int((q_TV.argmax(-1) == p_TV.argmax(-1)).sum())
        self.positions += len(ids) - 1
        self.kl_windows.append((self.kl_sum - start) / (len(ids) - 1))

    def result(self) -> dict[str, float]:
        mean = self.kl_sum / self.positions
        spread = np.std(self.kl_windows) / math.sqrt(len(self.kl_windows))
        return {
            "kl_mean": mean,
            "kl_standard_error": float(spread),
            "kl_max": self.kl_max,
            "perplexity": math.exp(self.loss_sum / self.positions),
            "same_top_token": self.agree / self.positions,
        }


def compare(
    reference: Contender, contenders: list[Contender], texts: list[list[int]], folder: Path
) -> dict[str, Tally]:
    """Window by window, so that no more than two windows' logits exist at a time."""
    tallies = {contender.word: Tally() for contender in [reference, *contenders]}
    for number, ids in enumerate(texts, 1):
        reference_TV = logits(reference, ids, folder / "reference")
        tallies[reference.word].add(reference_TV, reference_TV, ids)
        for contender in contenders:
            logits_TV = logits(contender, ids, folder / "contender")
            tallies[contender.word].add(logits_TV[:, : reference_TV.shape[1]], reference_TV, ids)
        means = (f"{w} {t.kl_sum / t.positions:.5f}" for w, t in tallies.items())
        print(f"window {number} of {len(texts)}: {', '.join(means)}", file=sys.stderr)
    return tallies


def logits(contender: Contender, ids: list[int], path: Path) -> Tensor:
    """float32 [T, V], in a file that the contender writes."""
    answer = contender.ask("logits", ids=ids, out=str(path))
    if answer is None:
        raise ContenderError(f"{contender.word} has no logits to give")
    shape = tuple(answer["shape"])
    return torch.from_numpy(np.memmap(path, dtype=np.float32, mode="r+", shape=shape))


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'':<20}{'MB':>7}{'bits':>7}{'KL mean':>12}{'± error':>10}{'KL max':>9}"
        f"{'perplexity':>12}{'same top':>10}"
    )
    for row in rows:
        size = (
            f"{row['weight_mb']:>7.1f}{row['bits_per_weight']:>7.2f}"
            if "weight_mb" in row
            else " " * 14
        )
        print(
            f"{row['contender']:<20}{size}{row['kl_mean']:>12.6f}{row['kl_standard_error']:>10.6f}"
            f"{row['kl_max']:>9.4f}{row['perplexity']:>12.4f}{row['same_top_token']:>10.2%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, contenders=CONTENDERS)
    parser.add_argument("--tokens", type=int, default=20_480, help="of the text")
    parser.add_argument("--window", type=int, default=512, help="tokens seen at once")
    args = parser.parse_args()
    count = 4 if args.quick else -(-args.tokens // args.window)
    setting = chosen(args, context=args.window + 16, cache_tokens=2 * args.window)

    text, about = standard_text()
    tokenizer = Tokenizer.from_source(weights.tokenizer_source(weights.resolve(args.model)))
    texts = windows(tokenizer, text, count, args.window)
    start = time.perf_counter()
    with ready([REFERENCE, *args.contenders], setting) as (running, absent):
        reference, *contenders = running
        if reference.word != REFERENCE:
            sys.exit(f"no reference: {absent[REFERENCE]}")
        shared = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
            tallies = compare(reference, contenders, texts, Path(folder))
        rows = [{"contender": c.word, **_size(c), **tallies[c.word].result()} for c in running]
    about |= {"tokens": count * args.window, "window": args.window}
    if args.json:
        print(json.dumps({"text": about, "results": rows, "absent": absent}, indent=2))
        return
    show(rows)
    print(f"{about['tokens']} tokens in windows of {args.window}, {about['text']}")
    print(f"Python {about['python']}, sha256 {about['sha256'][:16]}")
    print(f"{time.perf_counter() - start:.0f} s")


def _size(contender: Contender) -> dict[str, float]:
    greeting = contender.greeting
    if "weight_bytes" not in greeting:
        return {}
    bits = 8 * greeting["weight_bytes"] / greeting["weights"]
    return {
        "weight_mb": round(greeting["weight_bytes"] / 1e6, 1),
        "bits_per_weight": round(bits, 3),
    }


if __name__ == "__main__":
    main()
