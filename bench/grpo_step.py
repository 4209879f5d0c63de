"""Claim: a GRPO step on SmolLM2-135M (4 questions, 8 answers each of 128 tokens, full weights) is
at least 3x as fast as TRL's, and its update runs at 55 % of the peak or more.

mull and TRL take turns, one step each a round. mull's step is the trainer's own: rollout by the
engine in bfloat16 on the weights of the trainer, rewards, advantages, packing, one update, float32
weights and AdamW. Both multiply in bfloat16, or in float32 where the processor has no products of
bfloat16 (they would take a hundred times as long), and sample every answer to its full length
from prompts of the same words. Run: .venv/bin/python bench/grpo_step.py [--rounds N] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from contenders import HERE, Contender
from options import ROOT

from mull import weights
from mull.engine import Request
from mull.kernels.peaks import matmul_gflop_per_s
from mull.tasks import Problem
from mull.train import models
from mull.train.algorithms import ALGORITHMS
from mull.train.batch import Episode
from mull.train.data.writer import TraceWriter
from mull.train.peak import settled
from mull.train.recipe_parts import Optimiser, Sampling
from mull.train.rollout import Answer, Question, Sampler
from mull.train.step import Learner

PROMPTS = [f"What is {a} plus {a + 7}? Think step by step." for a in range(10, 400)]


class _FullLength(Sampler):
    """Answers go on past their end, as long as they may be."""

    def _request(self, question: Question, *args: Any) -> Request:
        request = super()._request(question, *args)
        params = {**vars(request.sampling), "ignore_eos": True}
        return type(request)(
            **{**vars(request), "sampling": type(request.sampling)(**params)},
        )


class Ours:
    """mull's step, as stages/rl.py makes it."""

    def __init__(self, model: str, args: argparse.Namespace) -> None:
        self.model = models.load(model)
        source = weights.tokenizer_source(weights.resolve(model))
        self.writer = models.writer_of(source)
        self.learner = Learner(
            self.model, Optimiser(learning_rate=1e-6, warmup=0), 10_000, precision=args.precision
        )
        self.algorithm = ALGORITHMS["grpo"]()
        self.args, self.asked = args, 0

    def step(self) -> dict[str, float]:
        args, start = self.args, time.perf_counter()
        sampler = _FullLength(self.model, self.writer, precision=args.rollout_precision)
        questions = self._questions(sampler.writer)
        sampling = Sampling(max_tokens=args.tokens)
        answers = sampler.answers(questions, sampling, args.group)
        rolled = time.perf_counter()
        episodes = [
            _episode(index, question, answer)
            for index, (question, some) in enumerate(zip(questions, answers, strict=True))
            for answer in some
        ]
        episodes = self.algorithm.advantages(episodes).episodes
        report = self.learner.step(self.algorithm.pack(episodes, args.batch_tokens), self.algorithm)
        end = time.perf_counter()
        return {
            "seconds": end - start,
            "rollout_seconds": rolled - start,
            "update_seconds": end - rolled,
            "update_gflop_per_s": report.flops / (end - rolled) / 1e9,
            "gap": report.metrics["gap"],
        }

    def _questions(self, writer: TraceWriter) -> list[Question]:
        """As TRL gives them: the words alone, in no chat."""
        first, self.asked = self.asked, self.asked + self.args.questions
        return [
            Question(Problem(text, "", "bench"), writer.tokenizer.encode(text), seed=first + index)
            for index, text in enumerate(PROMPTS[first : self.asked])
        ]


def _episode(group: int, question: Question, answer: Answer) -> Episode:
    asked = len(question.prompt)
    return Episode(
        [*question.prompt, *answer.ids],
        [False] * asked + [True] * len(answer.ids),
        group=group,
        # Any reward that differs within a group makes every answer count.
        reward=float(sum(answer.ids) % 7),
        logprobs=[0.0] * asked + answer.logprobs,
    )


def exported(model: str, work: Path) -> Path:
    """The model as a folder that transformers reads."""
    folder = work / f"{Path(model).stem}-hf"
    if not folder.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        main = "import sys; from mull.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", main, "export", model, "--format", "hf", "--type", "f32"]
        subprocess.run([*command, "--out", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="name, GGUF file or folder")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--group", type=int, default=8, help="answers to each question")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="of one forward pass")
    parser.add_argument("--rollout-precision", default="bf16")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--peer", type=Path, default=HERE / "peer_trl.py", help="script of the peer"
    )
    parser.add_argument("--no-peer", action="store_true", help="mull alone")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build/bench", help="files for the peer"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.precision = settled(args.precision)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    ours, peer = Ours(args.model, args), None
    if not args.no_peer:
        options = {
            "model": str(exported(args.model, args.work)),
            "prompts": PROMPTS,
            "group": args.group,
            "each": args.questions,
            "tokens": args.tokens,
            "threads": args.threads,
            "bf16": args.precision == "bf16",
        }
        peer = Contender(f"trl:{args.precision}", Path(sys.executable), args.peer, options)
    found: dict[str, list[dict[str, float]]] = {"mull": [], "trl": []}
    peaks = []
    try:
        for turn in range(args.rounds + 1):  # the first one is not counted
            with torch.inference_mode():
                peaks.append(matmul_gflop_per_s(dtype))
            steps = {"mull": ours.step()}
            if peer is not None:
                steps["trl"] = peer.ask("grpo_step") or {}
            for name, step in steps.items():
                print(f"{turn}: {name} {step['seconds']:.1f} s", file=sys.stderr)
                if turn:
                    found[name].append(step)
    finally:
        if peer is not None:
            peer.close()
    result = told(found, args.precision, max(peaks))
    print(json.dumps(result) if args.json else described(result))


def told(found: dict[str, list[dict[str, float]]], precision: str, peak: float) -> dict[str, Any]:
    rows = {
        name: {key: statistics.median(step[key] for step in steps) for key in steps[0]}
        | {"spread": [min(s["seconds"] for s in steps), max(s["seconds"] for s in steps)]}
        for name, steps in found.items()
        if steps
    }
    result: dict[str, Any] = {"steps": rows, "precision": precision, "gflop_per_s": peak}
    result["utilisation"] = rows["mull"]["update_gflop_per_s"] / peak
    if "trl" in rows:
        for part in ("seconds", "rollout_seconds", "update_seconds"):
            result[f"{part}_ratio"] = rows["trl"][part] / rows["mull"][part]
    return result


def described(result: dict[str, Any]) -> str:
    lines = []
    for name, row in result["steps"].items():
        least, most = row["spread"]
        lines.append(
            f"{name:6}{row['seconds']:7.2f} s ({least:.2f}-{most:.2f}): rollout "
            f"{row['rollout_seconds']:.2f} s, update {row['update_seconds']:.2f} s"
        )
    if "seconds_ratio" in result:
        lines.append(
            f"mull is {result['seconds_ratio']:.2f}x as fast, in rollouts "
            f"{result['rollout_seconds_ratio']:.2f}x, in updates "
            f"{result['update_seconds_ratio']:.2f}x"
        )
    lines.append(
        f"mull's update reaches {result['steps']['mull']['update_gflop_per_s']:.0f} GFLOP/s, "
        f"{result['utilisation']:.0%} of the {result['precision']} peak of "
        f"{result['gflop_per_s']:.0f}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
