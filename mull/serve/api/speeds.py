"""How fast models run here, measured once and remembered in speeds.json in MULL_HOME."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from statistics import median
from typing import Any

from mull.engine import Output, Request, SamplingParams
from mull.errors import StoreFullError
from mull.llm import LLM
from mull.serve.store.values import iso, now
from mull.weights import models_home

_PREFILL_TOKENS, _DECODE_TOKENS, _ROUNDS = 512, 48, 3


class Speeds:
    """By model; written atomically."""

    def __init__(self) -> None:
        self._path: Path = models_home().parent / "speeds.json"
        self._lock = threading.Lock()
        self._known = _read(self._path)

    def of(self, name: str) -> dict[str, Any] | None:
        return self._known.get(name)

    def write(self, name: str, speed: dict[str, Any]) -> None:
        self._save({**self._known, name: speed})

    def forget(self, name: str) -> None:
        if name in self._known:
            self._save({each: speed for each, speed in self._known.items() if each != name})

    def _save(self, known: dict[str, Any]) -> None:
        with self._lock:
            scratch = self._path.with_name(self._path.name + ".new")
            try:
                with scratch.open("w", encoding="utf-8") as file:
                    json.dump(known, file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                scratch.replace(self._path)
            except OSError as error:
                scratch.unlink(missing_ok=True)
                raise StoreFullError(f"{self._path} cannot be written: {error.strerror}") from None
            self._known = known


async def measure(llm: LLM) -> dict[str, Any]:
    """Tokens/s alone on the engine: of reading a long prompt, and of writing after it."""
    prompt_tokens = max(1, min(_PREFILL_TOKENS, llm.context - _DECODE_TOKENS))
    outputs = [await _answer(llm, prompt_tokens, seed) for seed in range(_ROUNDS)]
    waits = [output.timing.ttft_s for output in outputs if output.timing.ttft_s]
    rates = [output.timing.tokens_per_s for output in outputs if output.timing.tokens_per_s]
    return {
        "decode_tokens_per_s": round(median(rates), 1) if rates else None,
        "prefill_tokens_per_s": round(prompt_tokens / median(waits), 1) if waits else None,
        "precision": llm.precision,
        "measured": iso(now()),
    }


async def _answer(llm: LLM, tokens: int, seed: int) -> Output:
    """Random tokens, so that nothing is found in the cache; never ending early."""
    special = set(llm.tokenizer.special_ids.values())
    words = [i for i in range(min(llm.tokenizer.vocab_size, 50_000)) if i not in special]
    prompt = random.Random(seed + now()).choices(words, k=tokens)
    sampling = SamplingParams(max_tokens=_DECODE_TOKENS, temperature=0.0, ignore_eos=True)
    request = Request(prompt, sampling, detect_loops=False, speculate=False)
    return (await llm.runner.submit_async(request).result())[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(known, dict) and all(isinstance(v, dict) for v in known.values())
    return known if is_ours else {}
