"""llama.cpp through llama-cpp-python's C interface, as a contender (see child.py).

Fixed tokens stand for sampled ones, so that nothing but the model is timed: no sampler, no
detokenising. What it needs for its best speed was measured: see docs/performance.md.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lc
import numpy as np
from child import UnsupportedError, decoded, serve

Row = tuple[int, int, int, bool]  # token, position, sequence, wants logits
SLACK = 16


class Context:
    """A context for `sequences` sequences of `length` tokens each."""

    def __init__(self, model: Any, sequences: int, length: int, options: dict[str, Any]) -> None:
        params = lc.llama_context_default_params()
        params.n_batch, params.n_ubatch = max(512, sequences), max(512, sequences)
        params.n_ctx = sequences * -(-length // 256) * 256
        params.n_threads = params.n_threads_batch = options["threads"]
        params.n_seq_max = sequences
        params.kv_unified = options["unified"]
        params.flash_attn_type = 1 if options["flash"] else 0
        self._context = lc.llama_init_from_model(model, params)
        if not self._context:
            raise UnsupportedError(f"no context for {sequences} sequences of {length} tokens")
        self._batch = lc.llama_batch_init(params.n_batch, 0, 1)
        self._memory = lc.llama_get_memory(self._context)
        self._prompts = 0  # tokens of each sequence in the cache

    def run(self, rows: Sequence[Row]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants_logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wants_logits
        status = lc.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode gave {status}"
        if rows[-1][3]:
            lc.llama_get_logits_ith(self._context, len(rows) - 1)  # waits for the result

    def clear(self) -> None:
        lc.llama_memory_clear(self._memory, True)
        self._prompts = 0

    def prefill(self, tokens: int, seed: int, sequence: int = 0) -> None:
        for start in range(0, tokens, 512):
            stop = min(tokens, start + 512)
            self.run([(word(seed, i), i, sequence, i == tokens - 1) for i in range(start, stop)])

    def hold_prompts(self, sequences: int, tokens: int, seed: int) -> None:
        """Prompts of `tokens` tokens and nothing else; they stay from one request to the next."""
        if self._prompts != tokens:
            self.clear()
            for sequence in range(sequences):
                self.prefill(tokens, seed + sequence, sequence)
            self._prompts = tokens
        for sequence in range(sequences):
            lc.llama_memory_seq_rm(self._memory, sequence, tokens, -1)

    def logits(self, rows: int, vocabulary: int) -> np.ndarray:
        pointer = lc.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(rows, vocabulary))


@lc.llama_log_callback
def _ignore(*_: object) -> None:
    pass


def word(seed: int, position: int) -> int:
    return 100 + (seed * 7919 + position * 104729) % 30000


def load(model: str, threads: int, flash: bool = True, unified: bool = False) -> Any:
    lc.llama_log_set(_ignore, ctypes.c_void_p(0))
    lc.llama_backend_init()
    handle = lc.llama_model_load_from_file(model.encode(), lc.llama_model_default_params())
    if not handle:
        raise RuntimeError(f"llama.cpp cannot load {Path(model).name}")
    options = {"threads": threads, "flash": flash, "unified": unified}
    contexts: dict[tuple[int, int], Context] = {}

    def context(sequences: int, length: int) -> Context:
        key = (sequences, length)
        if key not in contexts:
            contexts[key] = Context(handle, sequences, length, options)
        return contexts[key]

    def prefill(tokens: int, seed: int) -> dict[str, Any]:
        chosen = context(1, tokens + SLACK)
        chosen.clear()
        start = time.perf_counter()
        chosen.prefill(tokens, seed)
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    def decode(batch: int, steps: int, context_tokens: int, seed: int) -> dict[str, Any]:
        chosen = context(batch, context_tokens + steps + SLACK)
        chosen.hold_prompts(batch, context_tokens, batch)
        start = time.perf_counter()
        for position in range(context_tokens, context_tokens + steps):
            chosen.run([(word(seed + s, position), position, s, True) for s in range(batch)])
        return {"seconds": time.perf_counter() - start, "tokens": batch * steps}

    def logits(ids: list[int], out: str) -> dict[str, Any]:
        """Writes float32 [T, V] of all positions of `ids` to the file `out`."""
        chosen = context(1, len(ids) + SLACK)
        chosen.clear()
        vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(handle))
        shape = (len(ids), vocabulary)
        target = np.memmap(out, dtype=np.float32, mode="w+", shape=shape)
        for start in range(0, len(ids), 512):
            part = ids[start : start + 512]
            chosen.run([(token, start + i, 0, True) for i, token in enumerate(part)])
            target[start : start + len(part)] = chosen.logits(len(part), vocabulary)
        return {"shape": shape}

    greeting = {
        "program": "llama.cpp",
        "version": f"llama-cpp-python {lc.__version__}",
        "system": lc.llama_print_system_info().decode().strip(" |"),
        "weight_bytes": lc.llama_model_size(handle),
        "weights": lc.llama_model_n_params(handle),
    }
    answers = {"prefill": prefill, "decode": decode, "rollout": decoded(decode), "logits": logits}
    return greeting, answers


if __name__ == "__main__":
    serve(load)
