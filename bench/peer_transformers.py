"""transformers as a contender (see child.py): greedy decoding with its cache, no `generate` around.

The bare loop costs less than `generate`, so a ratio to it also holds for `generate`.
"""

from __future__ import annotations

import io
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from child import serve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHUNK = 2048  # tokens of one prefill call: attention over more at once takes too much memory


def load(model: str, dtype: str, threads: int) -> Any:
    """model: a folder in Hugging Face layout, or a GGUF file (dequantised once, here)."""
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    path = Path(model)
    is_file = path.suffix == ".gguf"
    with redirect_stderr(io.StringIO()):  # progress bars
        net = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent if is_file else path),
            gguf_file=path.name if is_file else None,
            dtype=DTYPES[dtype],
        ).eval()
    held: dict[tuple[int, int], tuple[transformers.DynamicCache, torch.Tensor]] = {}

    def prompt(batch: int, tokens: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(100, 1000, (batch, tokens), generator=generator)

    def run(ids: torch.Tensor, cache: transformers.DynamicCache) -> torch.Tensor:
        out = net(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1)

    def fill(ids: torch.Tensor) -> tuple[transformers.DynamicCache, torch.Tensor]:
        cache = transformers.DynamicCache(config=net.config)
        for part in ids.split(CHUNK, dim=1):
            token = run(part, cache)
        return cache, token

    @torch.inference_mode()
    def prefill(tokens: int, seed: int) -> dict[str, Any]:
        ids = prompt(1, tokens, seed)
        start = time.perf_counter()
        fill(ids)
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    @torch.inference_mode()
    def decode(batch: int, steps: int, context_tokens: int, seed: int) -> dict[str, Any]:
        key = (batch, context_tokens)
        if key not in held:  # the prompts stay from one request to the next
            held[key] = fill(prompt(batch, context_tokens, batch))
        cache, token = held[key]
        start = time.perf_counter()
        for _ in range(steps):
            token = run(token, cache)
        seconds = time.perf_counter() - start
        cache.crop(-steps)
        return {"seconds": seconds, "tokens": batch * steps}

    @torch.inference_mode()
    def logits(ids: list[int], out: str) -> dict[str, Any]:
        """Writes float32 [T, V] of all positions of `ids` to the file `out`."""
        result_TV = net(torch.tensor([ids])).logits[0].float().numpy()
        np.memmap(out, dtype=np.float32, mode="w+", shape=result_TV.shape)[:] = result_TV
        return {"shape": result_TV.shape}

    greeting = {"program": "transformers", "version": transformers.__version__, "dtype": dtype}
    return greeting, {"prefill": prefill, "decode": decode, "logits": logits}


if __name__ == "__main__":
    serve(load)
