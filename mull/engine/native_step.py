"""One forward pass as the native code reads it (native/abi.h, Step): what both kinds of fused
layers share."""

from __future__ import annotations

import ctypes

from torch import Tensor

from mull.engine.paged import PagedSequences
from mull.errors import KernelError
from mull.kernels import PackedLinear, library
from mull.kernels.attention import paging
from mull.model.rope import Rope
from mull.model.sequences import Sequences


class NativeStep(library.Step):
    """Points into `kept`, the tensors that must live as long as it is used."""

    kept: tuple[Tensor | None, ...]


def native_step(ids_T: Tensor, seqs: Sequences, embedding: PackedLinear, rope: Rope) -> NativeStep:
    """Tokens and their positions; where a cache's rows are is still to be said."""
    ids_T = ids_T.long().contiguous()
    cos, sin, rows_T = rope.table(seqs.positions_T)
    step = NativeStep(
        ids=ids_T.data_ptr(),
        embedding=ctypes.pointer(embedding.native),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        rows=len(ids_T),
    )
    if rows_T is not None:
        rows_T = rows_T.long().contiguous()
        step.positions = rows_T.data_ptr()
    step.kept = ids_T, cos, sin, rows_T
    return step


def with_other_tokens(step: NativeStep, ids_T: Tensor) -> NativeStep:
    """The same places once more."""
    ids_T = ids_T.long().contiguous()
    again = NativeStep.from_buffer_copy(step)
    again.ids = ids_T.data_ptr()
    again.kept = *step.kept, ids_T
    return again


def point_to_cache(
    step: NativeStep,
    tables: tuple[Tensor, Tensor, Tensor, Tensor],
    cache_NS: Tensor,
) -> None:
    """tables: slots, block table, query starts and context; cache_NS: any layer's."""
    slots, *paged = tables
    step.slots = slots.data_ptr()
    step.paging = paging(*paged, cache_NS=cache_NS)
    if cache_NS.dtype not in library.CACHE_KINDS:
        raise KernelError(f"the native cache is float32, bfloat16 or int8, not {cache_NS.dtype}")
    step.cache_kind = library.CACHE_KINDS[cache_NS.dtype]
    step.kept += tables


def tables_of(seqs: PagedSequences) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return seqs.slots_T, seqs.block_table_BM, seqs.query_starts_B1, seqs.context_B


def native_library() -> ctypes.CDLL:
    """KernelError where it has been switched off since the layers were fused."""
    lib = library.library()
    if lib is None:
        raise KernelError("fused layers need the native kernels: load the model again without them")
    return lib
