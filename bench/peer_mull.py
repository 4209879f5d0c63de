"""mull itself as a contender (see child.py): the real engine with scheduler, sampler, paged cache.

Answers also carry the bytes that had to be read and the operations that had to be computed, which
make shares of the machine's peaks.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from child import serve

import mull
from mull.cli.speed import Work, decode_seconds, prefill_seconds
from mull.engine import Request, SamplingParams
from mull.engine.paged import PagedSequences


def weight_bytes(llm: mull.LLM) -> tuple[int, float]:
    """(all weights as they lie in memory, bytes of one that every token reads): the rows of an
    embedding table of its own are left out of the second."""
    tensors = {}
    for name, tensor in llm.engine.model.state_dict().items():
        tensors[tensor.data_ptr()] = (name, tensor.numel() * tensor.element_size())
    total = sum(size for _, size in tensors.values())
    table = sum(size for name, size in tensors.values() if "embed_tokens" in name)
    weights = llm.config.parameter_count()[0]
    if not llm.config.tie_word_embeddings:
        weights -= llm.config.vocab_size * llm.config.hidden_size
        return total, (total - table) / weights
    return total, total / weights


def engine_logits(llm: mull.LLM, ids: list[int]) -> torch.Tensor:
    """float32 [T, V] of one window through the engine's cache, as decoding would see it."""
    engine = llm.engine
    engine.submit(Request(ids, SamplingParams(max_tokens=1), detect_loops=False))
    rows: list[torch.Tensor] = []
    with torch.inference_mode():
        while sum(len(part) for part in rows) < len(ids):
            chunks = engine.scheduler.schedule()
            paged = PagedSequences(chunks, engine.cache)
            rows.append(engine.model.logits(engine.model(paged.ids_T, paged)))
            for chunk in chunks:
                engine.scheduler.computed(chunk)
    engine.cancel_all()
    return torch.cat(rows)


def sample_answers(
    llm: mull.LLM, prompts: list[list[int]], each: int, tokens: int, seed: int
) -> dict[str, Any]:
    """`each` answers to every prompt at once, temperature 1, log-probabilities kept."""
    engine = llm.engine
    for i, prompt in enumerate(prompts):
        sampling = SamplingParams(
            max_tokens=tokens, temperature=1.0, logprobs=0, n=each, seed=seed + i, ignore_eos=True
        )
        engine.submit(Request(prompt, sampling, detect_loops=False, streams=False))
    outputs = []
    start = time.perf_counter()
    while engine.has_work:
        outputs += [event.output for event in engine.step() if event.output is not None]
    seconds = time.perf_counter() - start
    first = min(output.request_id for output in outputs)
    answers = [
        {
            "prompt": output.request_id - first,
            "token_ids": output.token_ids,
            "logprobs": [token.logprob for token in output.logprobs or []],
        }
        for output in sorted(outputs, key=lambda output: (output.request_id, output.index))
    ]
    total = sum(len(answer["token_ids"]) for answer in answers)
    return {"seconds": seconds, "tokens": total, "answers": answers}


def load(model: str, precision: str, threads: int, **options: Any) -> Any:
    llm = mull.load(model, precision=precision, threads=threads, **options)
    llm.close()  # ends the thread that steps the engine: it is stepped here
    engine = llm.engine
    total_bytes, bytes_each = weight_bytes(llm)
    work = Work(llm.config, bytes_each, engine.cache.bytes_per_token)

    def prefill(tokens: int, seed: int) -> dict[str, Any]:
        seconds = prefill_seconds(engine, tokens, seed)
        return {"seconds": seconds, "tokens": tokens, "ops": work.prefill_ops(tokens)}

    def decode(batch: int, steps: int, context_tokens: int, seed: int) -> dict[str, Any]:
        # The prompts do not change: they stay in the prefix cache, as the peers keep theirs.
        seconds = decode_seconds(engine, batch, steps, 1000 * batch, context_tokens)
        return {
            "seconds": seconds,
            "tokens": batch * steps,
            "bytes": steps * work.step_bytes(batch, context_tokens + steps // 2),
            "ops": steps * work.decode_ops(batch),
        }

    def rollout(
        prompts: list[list[int]], each: int, tokens: int, context_tokens: int, seed: int
    ) -> dict[str, Any]:
        return sample_answers(llm, prompts, each, tokens, seed)

    def logits(ids: list[int], out: str) -> dict[str, Any]:
        """Writes float32 [T, V] of all positions of `ids` to the file `out`."""
        result_TV = engine_logits(llm, ids).float().numpy()
        target = np.memmap(out, dtype=np.float32, mode="w+", shape=result_TV.shape)
        target[:] = result_TV
        return {"shape": result_TV.shape}

    greeting = {
        "program": "mull",
        "version": mull.__version__,
        "precision": llm.precision,
        "weight_bytes": total_bytes,
        "weights": llm.config.parameter_count()[0],
        "context": llm.context,
    }
    return greeting, {"prefill": prefill, "decode": decode, "rollout": rollout, "logits": logits}


if __name__ == "__main__":
    serve(load)
