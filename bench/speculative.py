"""Claim: guesses make a rewrite at least 1.5x as fast alone, and nothing slower than 0.97x.

The same requests with and without guesses, in turn, in one process, each by an engine made for it;
answers are compared. Rewrites repeat what was read; prose sampled at temperature 1, and batches,
give guesses little to win.
With a model that has multi-token prediction, --mode mtp measures that instead, and --recipe asks a
recipe's own held-out problems one after another, for models that know nothing else:
--model nano --mode mtp --recipe nano.
Run: .venv/bin/python bench/speculative.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pydoc_data.topics import topics
from statistics import median
from typing import Any

import mull
from mull.cli.doctor import cpu_name
from mull.engine import Request
from mull.train.problems import Tasks
from mull.train.shipped import read_recipe

MODES = ("off", "on")


@dataclass(frozen=True)
class Case:
    label: str
    batch: int
    temperature: float
    tokens: int
    is_rewrite: bool
    problems: Sequence[str] = ()  # asked alone, one after another, thought through to the end


CASES = (
    Case("rewrite, batch 1", 1, 0.0, 200, True),
    Case("rewrite, batch 4", 4, 0.0, 200, True),
    Case("prose at temperature 1, batch 1", 1, 1.0, 128, False),
    Case("prose at temperature 1, batch 8", 8, 1.0, 128, False),
    Case("prose at temperature 1, batch 32", 32, 1.0, 64, False),
)


def thinking_cases(recipe_name: str) -> tuple[Case, ...]:
    recipe = read_recipe(recipe_name)
    task = Tasks(recipe)[next(iter(recipe.tasks))]
    problems = [problem.question for problem in islice(task.problems("test", 0), 24)]
    return tuple(
        Case(
            f"thinking at temperature {temperature:g}, batch 1",
            1,
            temperature,
            256,
            False,
            problems,
        )
        for temperature in (0.0, 1.0)
    )


def question(case: Case, i: int) -> str:
    names = sorted(topics)
    if not case.is_rewrite:
        return f"Tell me a story about {names[i].lower()} and a {names[-1 - i].lower()}."
    text = " ".join(topics[names[7 + 11 * i]].split())[:800]
    return (
        "Repeat the following text word for word, but write every name of the language Python "
        f"in capitals. Text:\n\n{text}"
    )


def requests(llm: mull.LLM, case: Case, seed: int, name: str) -> list[Request]:
    return [
        llm.request(
            question(case, i),
            max_tokens=case.tokens,
            temperature=case.temperature,
            top_p=1.0,
            seed=seed + i,
            ignore_eos=True,
            detect_loops=False,
            namespace=name,  # MTP guesses from no prompt that was computed without it
        )
        for i in range(case.batch)
    ]


def thinking_requests(llm: mull.LLM, case: Case, seed: int, name: str) -> list[Request]:
    """Of somebody who waits for the whole answer."""
    asked = [
        llm.request(
            problem,
            max_tokens=case.tokens,
            temperature=case.temperature,
            top_p=1.0,
            seed=seed + i,
            thinking="on",
            detect_loops=False,
            namespace=f"{name}/{seed}",  # every round computes its prompts anew
        )
        for i, problem in enumerate(case.problems)
    ]
    return [replace(request, streams=False) for request in asked]


def answers_in_turn(llm: mull.LLM, asked: list[Request]) -> tuple[float, list[list[int]]]:
    """(decode tokens a second over all of them, each alone; the sampled ids)."""
    seconds = tokens = 0.0
    said = []
    for request in asked:
        before = llm.engine.counters.decode_tokens
        rate, ids = answer(llm, [request])
        decoded = llm.engine.counters.decode_tokens - before
        tokens, seconds = tokens + decoded, seconds + decoded / rate
        said += ids
    return tokens / seconds, said


def answer(llm: mull.LLM, asked: list[Request]) -> tuple[float, list[list[int]]]:
    """(decode tokens a second once every prompt is computed, the sampled ids)."""
    engine = llm.engine
    for request in asked:
        engine.submit(request)
    outputs: list[Any] = []

    def step() -> None:
        outputs.extend(event.output for event in engine.step() if event.output is not None)

    while engine.scheduler.waiting or not all(s.is_decoding for s in engine.scheduler.running):
        step()
    before = engine.counters.decode_tokens
    start = time.perf_counter()
    while engine.has_work:
        step()
    seconds = time.perf_counter() - start
    rate = (engine.counters.decode_tokens - before) / seconds
    return rate, [output.token_ids for output in sorted(outputs, key=lambda o: o.request_id)]


def measure(llms: dict[str, mull.LLM], case: Case, rounds: int) -> dict[str, Any]:
    """llms: of MODES, each with an engine that was made for its mode."""
    engine = llms["on"].engine
    rates: dict[str, list[float]] = {name: [] for name in MODES}
    drafted = accepted = tokens = 0
    for turn in range(rounds + 1):
        said = []
        for name in MODES if turn % 2 else MODES[::-1]:
            llm, before = llms[name], engine.counters
            if case.problems:
                asked = thinking_requests(llm, case, 1000 * turn, name)
                rate, ids = answers_in_turn(llm, asked)
            else:
                rate, ids = answer(llm, requests(llm, case, 1000 * turn, name))
            said.append(ids)
            if not turn:
                continue
            rates[name].append(rate)
            if name == "on":
                drafted += engine.counters.drafted_tokens - before.drafted_tokens
                accepted += engine.counters.accepted_tokens - before.accepted_tokens
                tokens += engine.counters.decode_tokens - before.decode_tokens
        if said[0] != said[1]:
            sys.exit(f"{case.label}: the answers differ with and without guesses")
    ratios = [on / off for on, off in zip(rates["on"], rates["off"], strict=True)]
    return {
        "case": case.label,
        "tokens_per_s": {name: round(median(values), 1) for name, values in rates.items()},
        "ratio": round(median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "acceptance": round(accepted / drafted, 3) if drafted else None,
        "share_of_tokens_guessed": round(accepted / tokens, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="q4,bf16")
    parser.add_argument("--mode", default="ngram", help="ngram or mtp")
    parser.add_argument("--recipe", help="ask held-out problems of its first task instead")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="does it run? figures mean nothing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cases = CASES if args.recipe is None else thinking_cases(args.recipe)
    found = []
    for precision in args.precision.split(","):
        modes = dict(zip(MODES, ("off", args.mode), strict=True))
        llms = {
            name: mull.load(args.model, precision=precision, speculation=mode)
            for name, mode in modes.items()
        }
        for llm in llms.values():
            llm.close()  # ends the thread that steps the engine: it is stepped here
        for case in cases[:1] if args.quick else cases:
            row = measure(llms, case, 1 if args.quick else args.rounds)
            found.append({"precision": precision, **row})
            if not args.json:
                show(found[-1])
    if args.json:
        print(json.dumps({"cpu": cpu_name(), "mode": args.mode, "results": found}, indent=2))


def show(row: dict[str, Any]) -> None:
    rates, guessed = row["tokens_per_s"], row["share_of_tokens_guessed"]
    accepted = f"{row['acceptance']:.0%} of guesses" if row["acceptance"] is not None else "none"
    print(
        f"{row['precision']:<5}{row['case']:<34}{rates['off']:>8,.1f} -> {rates['on']:>8,.1f} "
        f"tokens/s, {row['ratio']:.2f}x ({row['ratio_min']:.2f}-{row['ratio_max']:.2f}); "
        f"accepted: {accepted}, {guessed:.0%} of tokens"
    )


if __name__ == "__main__":
    main()
