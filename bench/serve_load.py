"""Claim: served over HTTP the engine keeps its speed and its words. 64 clients at once each get the
engine's own greedy text; 16 streams decode at 85 % or more of `mull bench` at batch 16; memory is
flat over 1,000 requests; and while 16 long answers run a short question has its first token within
three decode steps and its own prefill.

A `mull up` of its own is asked over loopback; its clients, and the engine it is compared with, live
in this process, and the two take turns. Run: .venv/bin/python bench/serve_load.py [--only NAME]
[--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import psutil

import mull
from mull.cli.speed import PROMPT_TOKENS, decode_seconds
from mull.llm import LLM

MULL = str(Path(sys.executable).parent / "mull")
CLIENTS, LONG = 64, 16
TOPICS = ("bread", "rain", "iron", "maps", "ships", "salt", "clocks", "paper")


@dataclass
class Served:
    url: str
    process: psutil.Process


@contextmanager
def server(model: str, precision: str) -> Iterator[Served]:
    """Nothing is guessed ahead, so that a step is one token of each."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["up", "--no-browser", "--port=0", "-m", model, "--precision", precision]
        words += ["--speculation=off", f"--database=sqlite:///{folder}/chats.db", "--log=off"]
        process = subprocess.Popen([MULL, *words], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            yield Served(url, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(60)


@dataclass
class Heard:
    """One stream as it came: when each piece of it did, and all its bytes."""

    sent: float
    times: list[float]
    body: bytes

    @property
    def first(self) -> float:
        return self.times[0]

    @property
    def last(self) -> float:
        return self.times[-1]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        lines = self.body.split(b"\n")
        data = [line[6:] for line in lines if line.startswith(b"data: {")]
        return [json.loads(each) for each in data]


async def stream(url: str, path: str, body: dict[str, Any]) -> Heard:
    """A client that costs next to nothing: it looks at the bytes when the clock has stopped."""
    parts = urlsplit(url)
    content = json.dumps({**body, "stream": True}).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(content)}\r\n"
    sent = time.perf_counter()
    writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode())
    writer.write(content)
    times, pieces = [], []
    while piece := await reader.read(65536):
        if b"data: {" in piece:
            times.append(time.perf_counter())
        pieces.append(piece)
    writer.close()
    raw = b"".join(pieces)
    if not raw.startswith(b"HTTP/1.1 200") or not times:
        raise SystemExit(f"the server answered {raw[:400]!r}")
    return Heard(sent, times, _unchunked(raw.partition(b"\r\n\r\n")[2]))


def _unchunked(raw: bytes) -> bytes:
    body, at = [], 0
    while at < len(raw):
        end = raw.index(b"\r\n", at)
        size = int(raw[at:end], 16)
        body.append(raw[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(body)


async def together(url: str, path: str, bodies: list[dict[str, Any]]) -> list[Heard]:
    return list(await asyncio.gather(*(stream(url, path, body) for body in bodies)))


def random_ids(llm: LLM, count: int, seed: int) -> list[int]:
    """As `mull bench` asks: no prefix is shared."""
    special = set(llm.tokenizer.special_ids.values())
    words = [i for i in range(min(llm.tokenizer.vocab_size, 50_000)) if i not in special]
    return random.Random(seed).choices(words, k=count)


def completion(llm: LLM, tokens: int, seed: int, prompt_tokens: int) -> dict[str, Any]:
    prompt = random_ids(llm, prompt_tokens, seed)
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


# --- the four claims


def same_words(served: Served, llm: LLM, quick: bool) -> dict[str, Any]:
    """64 clients at once; what each is told beside what the engine itself says to the question."""
    tokens = 8 if quick else 48
    pairs = [(one, other) for one in TOPICS for other in TOPICS]
    said = [f"Tell me of {one} and {other} in {i} words." for i, (one, other) in enumerate(pairs)]
    wanted = llm.generate(said, max_tokens=tokens, temperature=0)
    asked = [
        {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0,
        }
        for text in said
    ]
    heard = asyncio.run(together(served.url, "/v1/chat/completions", asked))
    texts = [
        "".join(c["choices"][0]["delta"].get("content") or "" for c in each.chunks)
        for each in heard
    ]
    same = sum(text == answer.text for text, answer in zip(texts, wanted, strict=True))
    return {
        "clients": CLIENTS,
        "complete": sum(b"data: [DONE]" in each.body for each in heard),
        "equal_to_the_engines": same,
        "different_texts": len(set(texts)),
        "holds": same == CLIENTS,
    }


def throughput(served: Served, llm: LLM, quick: bool) -> dict[str, Any]:
    """Rounds of 16 streams, and the engine alone with the same work, in turns."""
    steps, rounds = (16, 1) if quick else (64, 9)
    rates: dict[str, list[float]] = {"served": [], "engine": []}
    for number in range(rounds + 1):
        seed = 1000 * number
        asked = [completion(llm, steps + 1, seed + i, PROMPT_TOKENS) for i in range(LONG)]
        heard = asyncio.run(together(served.url, "/v1/completions", asked))
        # From the moment in which all decode to the end of the first.
        seconds = max(each.last for each in heard) - max(each.first for each in heard)
        own = decode_seconds(llm.engine, LONG, steps, seed + 500)
        if number:  # the first one warms up
            rates["served"].append(LONG * steps / seconds)
            rates["engine"].append(LONG * steps / own)
    share = median(s / e for s, e in zip(rates["served"], rates["engine"], strict=True))
    return {
        "clients": LONG,
        "served_tokens_per_s": _spread(rates["served"]),
        "engine_tokens_per_s": _spread(rates["engine"]),
        "share": round(share, 3),
        "holds": share >= 0.85,
    }


def memory(served: Served, llm: LLM, quick: bool) -> dict[str, Any]:
    """1,000 short chats by 16 clients; resident memory every hundred."""
    count = 200 if quick else 1000
    resident: list[int] = []

    async def ask_all() -> None:
        numbers = iter(range(count))

        async def client() -> None:
            for number in numbers:
                said = [{"role": "user", "content": f"Say something about the number {number}."}]
                body = {"messages": said, "max_tokens": 8, "seed": number}
                await stream(served.url, "/v1/chat/completions", body)
                if (number + 1) % 100 == 0:
                    resident.append(served.process.memory_info().rss)

        await asyncio.gather(*(client() for _ in range(16)))

    began = time.perf_counter()
    asyncio.run(ask_all())
    seconds = time.perf_counter() - began
    # The first hundreds fill the cache's blocks, which stay.
    grown = (resident[-1] - resident[len(resident) // 2 - 1]) / 1e6
    return {
        "requests": count,
        "requests_per_s": round(count / seconds, 1),
        "resident_mb": [round(each / 1e6, 1) for each in resident],
        "grown_in_second_half_mb": round(grown, 2),
        "holds": grown < 10,
    }


def first_token(served: Served, llm: LLM, quick: bool) -> dict[str, Any]:
    """A short question alone, and while 16 long answers run."""
    rounds, length = (2, 60) if quick else (9, 500)
    number = iter(range(10**9))

    def short() -> dict[str, Any]:
        return completion(llm, 2, 77_000 + next(number), 32)

    async def ask() -> float:
        heard = await stream(served.url, "/v1/completions", short())
        return heard.first - heard.sent

    async def beside() -> tuple[list[float], float]:
        """Waits for the first token, and the seconds of a step meanwhile."""
        bodies = [completion(llm, length, 88_000 + i, PROMPT_TOKENS) for i in range(LONG)]
        long = asyncio.create_task(together(served.url, "/v1/completions", bodies))
        await asyncio.sleep(1.0 if not quick else 0.3)
        waits = []
        for _ in range(rounds):
            waits.append(await ask())
            await asyncio.sleep(0.1)
        done = await long
        steps = [
            (each.times[i + 1] - each.times[i]) for each in done for i in range(len(each.times) - 1)
        ]
        return waits, median(steps)

    asyncio.run(ask())
    alone = median(asyncio.run(ask()) for _ in range(rounds))
    waits, step = asyncio.run(beside())
    limit = 3 * step + alone
    return {
        "alone_ms": round(alone * 1e3, 1),
        "beside_16_long_answers_ms": _spread([wait * 1e3 for wait in waits]),
        "step_ms": round(step * 1e3, 1),
        "limit_ms": round(limit * 1e3, 1),
        "steps_beyond_own_prefill": round((median(waits) - alone) / step, 2),
        "holds": median(waits) < limit,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(median(values), 1),
        "min": round(min(values), 1),
        "max": round(max(values), 1),
    }


CLAIMS = {
    "words": same_words,
    "memory": memory,
    "first_token": first_token,
    "throughput": throughput,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", choices=list(CLAIMS), action="append")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="does it run? figures mean nothing")
    options = parser.parse_args()
    found: dict[str, Any] = {"model": options.model, "cores": os.cpu_count()}
    with server(options.model, options.precision) as served:
        llm = mull.load(options.model, precision=options.precision, speculation="off")
        found["precision"] = llm.precision
        wanted = options.only or list(CLAIMS)
        for name in CLAIMS:
            if name == "throughput":
                llm.close()  # from here on its engine is stepped by hand
            if name in wanted:
                found[name] = CLAIMS[name](served, llm, options.quick)
                if not options.json:
                    print(f"{name}: {json.dumps(found[name])}", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
