"""The programs mull is timed against, loaded side by side in one process.

Each contender times one run of prefill or of greedy decode and returns tokens per second.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

PROMPT_TOKENS = 16  # of every sequence in a decode run, as mull's own bench has it


class Contender(Protocol):
    name: str

    def prefill(self, tokens: int, seed: int) -> float: ...

    def decode(self, batch: int, steps: int, seed: int) -> float: ...


class Transformers:
    """`generate` of transformers on the same file, dequantised to one dtype at loading."""

    def __init__(self, gguf: Path, dtype: torch.dtype) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        short = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        self.name = f"transformers {transformers.__version__} {short}"
        with redirect_stderr(io.StringIO()):  # progress bars
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, dtype=dtype
            ).eval()

    def _ids(self, batch: int, tokens: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(100, 1000, (batch, tokens), generator=generator)

    @torch.inference_mode()
    def prefill(self, tokens: int, seed: int) -> float:
        ids = self._ids(1, tokens, seed)
        start = time.perf_counter()
        self._model(ids, use_cache=True, logits_to_keep=1)
        return tokens / (time.perf_counter() - start)

    @torch.inference_mode()
    def decode(self, batch: int, steps: int, seed: int) -> float:
        """The time of one token is taken off, so that prefill counts for nobody."""
        ids = self._ids(batch, PROMPT_TOKENS, seed)
        first = self._seconds(ids, 1)
        return batch * steps / (self._seconds(ids, steps + 1) - first)

    def _seconds(self, ids: torch.Tensor, tokens: int) -> float:
        start = time.perf_counter()
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        assert out.shape[1] == ids.shape[1] + tokens
        return time.perf_counter() - start


class LlamaCpp:
    """llama.cpp on the file as it is (its own quantisation), through the bindings' C interface."""

    def __init__(self, gguf: Path, *, threads: int, max_batch: int, steps: int) -> None:
        self.name, ffi, lib = llama_library()
        self._lib: Any = lib
        self._silent = ffi.callback("void(enum ggml_log_level, const char *, void *)", _ignore)
        lib.llama_log_set(self._silent, ffi.NULL)
        lib.llama_backend_init()
        model = lib.llama_model_load_from_file(str(gguf).encode(), lib.llama_model_default_params())
        assert model != ffi.NULL, f"llama.cpp cannot load {gguf}"
        params = lib.llama_context_default_params()
        params.n_batch = params.n_ubatch = 512
        params.n_ctx = max(1024, max_batch * (PROMPT_TOKENS + steps + 16))
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max, params.kv_unified = max_batch, True
        self._context = lib.llama_init_from_model(model, params)
        assert self._context != ffi.NULL, "llama.cpp gave no context"
        self._batch = lib.llama_batch_init(512, 0, 1)

    def _run(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """rows: (token, position, sequence, wants logits)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants_logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wants_logits
        assert self._lib.llama_decode(self._context, batch) == 0, "llama.cpp: decode failed"
        self._lib.llama_get_logits_ith(self._context, len(rows) - 1)  # waits for the result

    def _clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def prefill(self, tokens: int, seed: int) -> float:
        self._clear()
        rows = [(100 + (seed + i) % 900, i, 0, i == tokens - 1) for i in range(tokens)]
        start = time.perf_counter()
        self._run(rows)
        return tokens / (time.perf_counter() - start)

    def decode(self, batch: int, steps: int, seed: int) -> float:
        """Fixed tokens instead of sampled ones: nothing but the model is timed."""
        self._clear()
        for position in range(PROMPT_TOKENS):
            self._run([(100 + (seed + s) % 900, position, s, True) for s in range(batch)])
        start = time.perf_counter()
        for position in range(PROMPT_TOKENS, PROMPT_TOKENS + steps):
            self._run([(100 + (seed + s) % 900, position, s, True) for s in range(batch)])
        return batch * steps / (time.perf_counter() - start)


def llama_library() -> tuple[str, Any, Any]:
    """(name, ffi, library) of the first installed build of llama.cpp that this system can load.

    Two packages carry one: llama_cpp_py_sync (with the C declarations, but built for a recent
    glibc) and xllamacpp (whose extension module exports the C interface too).
    """
    from llama_cpp_py_sync._cffi_bindings import get_ffi

    ffi = get_ffi()
    why = []
    for package, file in (("llama_cpp_py_sync", "libllama.so"), ("xllamacpp", "xllamacpp.abi3.so")):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        try:
            lib = ffi.dlopen(str(Path(spec.origin).parent / file))
        except OSError as error:
            why.append(f"{package}: {error}")
            continue
        defaults = lib.llama_context_default_params()
        # The declarations are of one version and the library may be of another.
        assert (defaults.n_ctx, defaults.n_batch, defaults.n_ubatch) == (512, 2048, 512), package
        return f"llama.cpp ({package} {version(package)})", ffi, lib
    raise RuntimeError(f"no build of llama.cpp loads here: {'; '.join(why)}")


def _ignore(*_: object) -> None:
    pass


def available_peers(gguf: Path, *, threads: int, max_batch: int, steps: int) -> list[Contender]:
    """transformers in both dtypes (the better one counts), llama.cpp where it is installed."""
    makers: list[Callable[[], Contender]] = [
        lambda: Transformers(gguf, torch.bfloat16),
        lambda: Transformers(gguf, torch.float32),
    ]
    if find_spec("llama_cpp_py_sync") is not None:
        makers.append(lambda: LlamaCpp(gguf, threads=threads, max_batch=max_batch, steps=steps))
    return [make() for make in makers]
