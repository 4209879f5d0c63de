"""The native library: where it lies, which instruction set it uses, or why it is off.

Plain C behind ctypes. The structs are in structs.py and structs_training.py.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from ctypes import c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch

from mull.errors import KernelError
from mull.kernels.structs import Attention as Attention
from mull.kernels.structs import CacheRows as CacheRows
from mull.kernels.structs import Decode as Decode
from mull.kernels.structs import Draw as Draw
from mull.kernels.structs import Guess as Guess
from mull.kernels.structs import GuessedSteps as GuessedSteps
from mull.kernels.structs import LatentLayer as LatentLayer
from mull.kernels.structs import LatentStack as LatentStack
from mull.kernels.structs import Layer as Layer
from mull.kernels.structs import Linear as Linear
from mull.kernels.structs import NextToken as NextToken
from mull.kernels.structs import Paging as Paging
from mull.kernels.structs import Places as Places
from mull.kernels.structs import Routing as Routing
from mull.kernels.structs import Stack as Stack
from mull.kernels.structs import Step as Step
from mull.kernels.structs_training import DealtRows as DealtRows
from mull.kernels.structs_training import GatedRows as GatedRows
from mull.kernels.structs_training import NormRows as NormRows
from mull.kernels.structs_training import ShortAttention as ShortAttention
from mull.kernels.structs_training import SummedRows as SummedRows
from mull.kernels.structs_training import TokenRows as TokenRows

VARIANTS = ("avx512bf16", "avx512vnni", "avxvnni", "avx2", "neon", "portable")
CACHE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
KEYS, VALUES, LATENTS = range(3)  # what the rows of an int8 cache are
_FILE = "mull_kernels.so"
_OMP_PAUSE_SOFT = 1


_STRUCTS = (
    Linear,
    Layer,
    Paging,
    Stack,
    Step,
    Attention,
    CacheRows,
    Routing,
    LatentLayer,
    LatentStack,
    NextToken,
    Draw,
    Places,
    Decode,
    Guess,
    GuessedSteps,
    NormRows,
    GatedRows,
    SummedRows,
    DealtRows,
    ShortAttention,
    TokenRows,
)
_pointer, _i32, _i64 = c_void_p, c_int32, c_int64
# What the library's functions return and take.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "mull_sizes": (None, [_pointer]),
    "mull_set_runtime": (None, [_pointer, _pointer, _pointer]),
    "mull_select": (_i32, [c_char_p]),
    "mull_supports": (_i32, [c_char_p]),
    "mull_selected": (c_char_p, []),
    "mull_pack": (None, [_pointer, _pointer, _pointer, _i32]),
    "mull_rows": (None, [_pointer, _pointer, _i64, _pointer]),
    "mull_linear": (_i32, [_pointer, _pointer, _i64, _pointer, _i32]),
    "mull_attention": (_i32, [_pointer, _i32]),
    "mull_write_cache": (_i32, [_pointer, _i32, _i64, _i64, _pointer, _pointer, _i64]),
    "mull_write_int8": (_i32, [_pointer, _i32]),
    "mull_stack": (_i32, [_pointer, _pointer, _pointer, _i32]),
    "mull_latent_stack": (_i32, [_pointer, _pointer, _pointer, _i32]),
    "mull_next_token": (_i32, [_pointer, _pointer, _pointer, _pointer, _i32]),
    "mull_draw": (_i32, [_pointer, _i32]),
    "mull_decode": (_i32, [_pointer, _i32]),
    "mull_guess": (_i32, [_pointer, _i32]),
    "mull_guessed_steps": (_i32, [_pointer, _i32]),
    "mull_multiply_whole_numbers": (None, [_i64, _i32]),
    "mull_norm": (_i32, [_pointer, _i32]),
    "mull_gated": (_i32, [_pointer, _i32]),
    "mull_summed": (_i32, [_pointer, _i32]),
    "mull_dealt": (_i32, [_pointer, _i32]),
    "mull_short_attention": (_i32, [_pointer, _i32]),
    "mull_tokens": (_i32, [_pointer, _i32]),
    "mull_attention_inputs": (_i32, [_pointer, _i64, _pointer, _pointer, _pointer, _i32]),
    "mull_attention_outputs": (_i32, [_pointer, _i64, _pointer, _pointer, _pointer, _i32]),
}
_STATUS = {
    1: "no memory for the kernel's buffers: use shorter prompts or fewer requests at once",
    2: "a block table, context or query start does not fit the cache it is used with",
    3: "a slot lies outside the cache it is written to",
    4: "a token id lies outside the vocabulary",
    5: "a row number lies outside the table it is of",
}


def check(status: int) -> None:
    if status:
        raise KernelError(_STATUS[status])


class _Native:
    """The loaded library, or the reason there is none; one per process."""

    def __init__(self) -> None:
        self.library: ctypes.CDLL | None = None
        self.reason = ""
        self.runtime = ""
        wanted = os.environ.get("MULL_KERNELS", "")
        if wanted and wanted not in (*VARIANTS, "torch"):
            raise KernelError(
                f"MULL_KERNELS is {wanted!r}: use one of {', '.join(VARIANTS)} or torch"
            )
        if wanted == "torch":
            self.reason = "switched off by MULL_KERNELS=torch"
            return
        path = _find()
        if path is None:
            self.reason = (
                "not built: there was no C++ compiler when mull was installed "
                "(install gcc or clang, then install mull again)"
            )
            return
        library = ctypes.CDLL(str(path))
        if not _is_of_this_version(library):
            self.reason = f"{path.name} is of another version of mull: install mull again"
            return
        _declare(library)
        if not library.mull_select(wanted.encode() if wanted else None):
            raise KernelError(f"MULL_KERNELS is {wanted!r}, which this processor does not have")
        self.runtime = _share_threads(library)
        self.library = library


def _find() -> Path | None:
    # In an editable install the library lies in site-packages, the sources elsewhere.
    for folder in sys.modules[__package__].__path__:
        if (path := Path(folder) / _FILE).is_file():
            return path
    return None


def _is_of_this_version(library: ctypes.CDLL) -> bool:
    if not all(hasattr(library, name) for name in _SIGNATURES):
        return False
    sizes = (c_int64 * 256)()  # room for those of any version, which ends with zeros
    library.mull_sizes(sizes)
    return [size for size in sizes if size] == [ctypes.sizeof(struct) for struct in _STRUCTS]


def _declare(library: ctypes.CDLL) -> None:
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def _share_threads(library: ctypes.CDLL) -> str:
    """Hands torch's own OpenMP runtime to the library, so that there is one pool of threads.

    Two pools spinning on the same cores are 10 to 36 times slower (measured). Returns its name.
    """
    for path in _mapped_libraries():
        name = path.name
        if not name.startswith(("libgomp", "libomp", "libiomp5")):
            continue
        runtime = ctypes.CDLL(str(path))
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        if all(hasattr(runtime, symbol) for symbol in names):
            entries = [ctypes.cast(getattr(runtime, symbol), c_void_p) for symbol in names]
            library.mull_set_runtime(*entries)
            return name
    return ""


def _mapped_libraries() -> list[Path]:
    """Shared libraries of this process; torch has loaded its OpenMP runtime by now."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return []
    lines = maps.read_text().splitlines()
    return sorted({Path(line.split(maxsplit=5)[5]) for line in lines if ".so" in line})


@functools.cache
def _native() -> _Native:
    return _Native()


def library() -> ctypes.CDLL | None:
    """The library, or None where everything runs on torch."""
    return _native().library


def native_available() -> bool:
    return _native().library is not None


def threads() -> int:
    return torch.get_num_threads() if _native().runtime else 1


def release_threads() -> None:
    """Dismiss the calling thread's OpenMP team; the next parallel work makes a new one.

    libgomp keeps a team for every thread that ever computed in parallel. With more of them than
    cores it no longer spins at barriers, and a decode step takes nearly twice as long (measured: 50
    against 88 tokens/s). So who hands the computing to another thread dismisses its own team.
    """
    for path in _mapped_libraries():
        if path.name.startswith("libgomp"):
            pause = getattr(ctypes.CDLL(str(path)), "omp_pause_resource_all", None)
            if pause is not None:
                pause(_OMP_PAUSE_SOFT)


def supported() -> list[str]:
    """The variants this processor can run, best first; empty without the library."""
    lib = library()
    return [name for name in VARIANTS if lib is not None and lib.mull_supports(name.encode())]


def select(variant: str) -> None:
    """Switches the whole process to another instruction set (results differ in the last bits)."""
    lib = library()
    if lib is None or not lib.mull_select(variant.encode()):
        raise KernelError(f"the native kernels cannot use {variant!r} here")


def describe() -> dict[str, Any]:
    """isa, threads, openmp (whose threads), and why native code is off and what that costs."""
    native, lib = _native(), library()
    if lib is None:
        return {
            "isa": "torch",
            "threads": torch.get_num_threads(),
            "openmp": "",
            "reason": native.reason,
            "cost": "the CPU is several times slower, and q8 and q4 take the memory of fp32",
        }
    single = "" if native.runtime else "no OpenMP runtime found in torch: one thread only"
    return {
        "isa": lib.mull_selected().decode(),
        "threads": threads(),
        "openmp": native.runtime,
        "reason": single,
        "cost": "decoding uses one core" if single else "",
    }
