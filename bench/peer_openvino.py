"""OpenVINO GenAI as a contender (see child.py), timed by its own counters."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import openvino_genai as ov
from child import decoded, serve


def load(model: str, threads: int) -> Any:
    pipe = ov.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)
    config = ov.GenerationConfig()
    config.ignore_eos = True

    def generate(tokens: int, batch: int, max_new_tokens: int, seed: int) -> Any:
        ids = np.random.default_rng(seed).integers(100, 30000, (batch, tokens), dtype=np.int64)
        inputs = ov.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config.max_new_tokens = max_new_tokens
        return pipe.generate(inputs, config).perf_metrics

    def prefill(tokens: int, seed: int) -> dict[str, Any]:
        metrics = generate(tokens, 1, 2, seed)
        return {"seconds": metrics.get_ttft().mean / 1000, "tokens": tokens}

    def decode(batch: int, steps: int, context_tokens: int, seed: int) -> dict[str, Any]:
        """From the first token of every sequence to the last one."""
        metrics = generate(context_tokens, batch, steps + 1, seed)
        milliseconds = metrics.get_generate_duration().mean - metrics.get_ttft().mean
        return {"seconds": milliseconds / 1000, "tokens": batch * steps}

    greeting = {"program": "OpenVINO", "version": f"openvino-genai {ov.__version__}"}
    return greeting, {"prefill": prefill, "decode": decode, "rollout": decoded(decode)}


if __name__ == "__main__":
    serve(load)
