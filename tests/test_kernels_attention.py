"""Paged attention against the torch reference, and what its results may not depend on."""

import dataclasses
import random
from contextlib import nullcontext, suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_variants import VARIANTS, examples, using, without_native
from torch import Tensor

from mull.errors import KernelError
from mull.kernels import (
    int8_cache,
    library,
    paged_attention,
    paged_latent_attention,
    reference,
    write_cache,
    write_keys,
    write_values,
)


@dataclasses.dataclass
class Case:
    """Sequences with keys in shuffled blocks; every slot that holds no key is NaN."""

    q: Tensor
    key: Tensor
    value: Tensor
    table: Tensor
    starts: Tensor
    context: Tensor

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]:
        scale = self.q.shape[-1] ** -0.5
        return self.q, self.key, self.value, self.table, self.starts, self.context, scale


def make_case(
    heads: int,
    kv_heads: int,
    dim: int,
    contexts: list[int],
    new: list[int],
    *,
    dtype: torch.dtype = torch.float32,
    block_size: int = 16,
) -> Case:
    generator = torch.Generator().manual_seed(heads * 100 + dim)
    counts = [-(-context // block_size) for context in contexts]
    blocks = list(range(sum(counts) + 3))
    random.Random(0).shuffle(blocks)
    table = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    shape = (len(blocks), block_size, kv_heads, dim)
    key, value = torch.full(shape, float("nan")), torch.full(shape, float("nan"))
    for b, context in enumerate(contexts):
        table[b, : counts[b]] = torch.tensor([blocks.pop() for _ in range(counts[b])])
        slots = table[b].repeat_interleave(block_size)[:context].long() * block_size
        slots += torch.arange(context) % block_size
        for cache in (key, value):
            rows = torch.randn(context, kv_heads, dim, generator=generator)
            cache.view(-1, kv_heads, dim)[slots] = rows
    starts = torch.tensor([0, *new]).cumsum(0).to(torch.int32)
    q = torch.randn(sum(new), heads, dim, generator=generator)
    lengths = torch.tensor(contexts, dtype=torch.int32)
    return Case(q, key.to(dtype), value.to(dtype), table, starts, lengths)


CASES = {
    "decode": make_case(9, 3, 64, [20, 7, 600, 16], [1, 1, 1, 1], dtype=torch.bfloat16),
    "prefill": make_case(9, 3, 64, [20, 7, 33], [20, 7, 33], dtype=torch.bfloat16),
    "mixed chunks": make_case(4, 2, 32, [1, 513, 512, 90], [1, 1, 2, 40]),
    "odd head width": make_case(2, 2, 7, [1, 65, 40], [1, 1, 40]),
    "narrow head, small blocks": make_case(6, 1, 3, [30, 9], [1, 5], block_size=4),
    "one key head for many": make_case(32, 1, 24, [700, 3], [1, 3]),
    "eight to one": make_case(8, 1, 128, [130], [70], dtype=torch.bfloat16),
    "long": make_case(2, 1, 64, [1600], [1], dtype=torch.bfloat16),
    "an idle sequence": make_case(2, 1, 16, [20, 5], [0, 1]),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CASES)
def test_paged_attention_equals_the_reference(variant: str, name: str) -> None:
    arguments = CASES[name].arguments()
    with using(variant):
        got = paged_attention(*arguments)
    torch.testing.assert_close(got, reference.paged_attention(*arguments), rtol=1e-5, atol=5e-6)


DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
SEQUENCES = st.lists(st.tuples(st.integers(1, 540), st.integers(0, 30)), min_size=1, max_size=4)


@examples(40)
@given(
    variant=st.sampled_from(library.supported() or ["portable"]),
    dtype=DTYPES,
    groups=st.integers(1, 13) | st.just(33),
    kv_heads=st.integers(1, 3),
    dim=st.integers(1, 80),
    block_size=st.sampled_from([1, 3, 16, 32]),
    sequences=SEQUENCES,
)
def test_any_shape_equals_the_reference(
    variant: str,
    dtype: torch.dtype,
    groups: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    sequences: list[tuple[int, int]],
) -> None:
    contexts = [context for context, _ in sequences]
    new = [min(context, n) for context, n in sequences]
    heads = groups * kv_heads
    case = make_case(heads, kv_heads, dim, contexts, new, dtype=dtype, block_size=block_size)
    with using(variant):
        got = paged_attention(*case.arguments())
    expected = reference.paged_attention(*case.arguments())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@examples(25)
@given(
    variant=st.sampled_from(library.supported() or ["portable"]),
    dtype=DTYPES,
    heads=st.integers(1, 35),
    value_dim=st.integers(1, 70),
    rope_dim=st.integers(0, 33),
    sequences=SEQUENCES,
)
def test_latent_attention_of_any_shape_equals_the_reference(
    variant: str,
    dtype: torch.dtype,
    heads: int,
    value_dim: int,
    rope_dim: int,
    sequences: list[tuple[int, int]],
) -> None:
    contexts = [context for context, _ in sequences]
    new = [min(context, n) for context, n in sequences]
    case = make_case(heads, 1, value_dim + rope_dim, contexts, new, dtype=dtype)
    latents = case.key[:, :, 0].contiguous()
    arguments = (case.q, latents, case.table, case.starts, case.context, 0.2, value_dim)
    with using(variant):
        got = paged_latent_attention(*arguments)
    expected = reference.paged_latent_attention(*arguments)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


NUMBERS = st.integers(-2, 9) | st.sampled_from([-(2**31), 2**31 - 1])


@examples(150)
@given(
    table=st.lists(NUMBERS, min_size=4, max_size=4),
    starts=st.lists(NUMBERS, min_size=1, max_size=1),
    context=st.lists(NUMBERS | st.integers(1, 33), min_size=2, max_size=2),
    slots=st.lists(NUMBERS, min_size=1, max_size=3),
)
def test_tables_of_any_numbers_are_refused_or_lie_within_the_cache(
    table: list[int], starts: list[int], context: list[int], slots: list[int]
) -> None:
    """What lies outside is noticed when the kernels run sanitised."""
    cache = torch.zeros(3, 16, 1, 8)
    numbers = (torch.tensor(part, dtype=torch.int32) for part in (table, [0, *starts, 4], context))
    table_BM, *others = numbers
    with suppress(KernelError):
        paged_attention(torch.zeros(4, 1, 8), cache, cache, table_BM.view(2, 2), *others, 1.0)
    with suppress(KernelError):
        write_cache(cache, torch.zeros(len(slots), 1, 8), torch.tensor(slots, dtype=torch.int32))


@examples(60)
@given(
    rows=st.integers(1, 3),
    slots=st.integers(1, 3),
    sequences=st.integers(1, 3),
    starts=st.integers(2, 4),
    contexts=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.int8]),
    variant=st.sampled_from(library.supported()[:1] or ["portable"]),
)
def test_tables_of_other_lengths_than_their_neighbours_are_refused(
    rows: int,
    slots: int,
    sequences: int,
    starts: int,
    contexts: int,
    dtype: torch.dtype,
    variant: str,
) -> None:
    cache = torch.zeros(3, 16, 1, int8_cache.row_bytes(8) if dtype == torch.int8 else 8).to(dtype)
    starts_B1 = torch.arange(starts).clamp(max=sequences)
    starts_B1[-1] = sequences
    tables = (torch.zeros(sequences, 1), starts_B1, torch.full((contexts,), 5))
    with using(variant):
        for write in (write_keys, write_values):
            with nullcontext() if rows == slots else pytest.raises(KernelError, match="slots"):
                write(cache, torch.zeros(rows, 1, 8), torch.arange(slots))
        is_whole = sequences == starts - 1 == contexts
        with nullcontext() if is_whole else pytest.raises(KernelError, match="do not fit"):
            paged_attention(torch.zeros(sequences, 1, 8), cache, cache, *tables, 1.0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_token_attends_to_the_same_bits_in_any_chunk_batch_or_number_of_threads(
    variant: str, threads: int
) -> None:
    case = make_case(6, 2, 32, [600, 40], [600, 40], dtype=torch.bfloat16)
    before = torch.get_num_threads()
    with using(variant):
        whole = paged_attention(*case.arguments())
        torch.set_num_threads(threads)
        for first, count in ((0, 1), (0, 13), (500, 12), (511, 3), (599, 1)):
            chunk = dataclasses.replace(
                case,
                q=case.q[first : first + count],
                table=case.table[:1],
                starts=torch.tensor([0, count], dtype=torch.int32),
                context=torch.tensor([first + count], dtype=torch.int32),
            )
            assert torch.equal(paged_attention(*chunk.arguments()), whole[first : first + count])
        torch.set_num_threads(before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_in_one_sequence_or_in_a_later_key_reaches_no_other_token(variant: str) -> None:
    case = make_case(4, 2, 16, [30, 30], [30, 30])
    with using(variant):
        clean = paged_attention(*case.arguments())
        spoilt_block = int(case.table[0, 1])
        case.key[spoilt_block, 4:] = float("nan")  # sequence 0, keys 20 to 29
        case.value[spoilt_block, 4:] = float("nan")
        got = paged_attention(*case.arguments())
    assert torch.equal(got[:20], clean[:20])
    assert torch.equal(got[30:], clean[30:])
    assert got[20:30].isnan().all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latent_attention_equals_the_reference(variant: str, dtype: torch.dtype) -> None:
    for heads, value_dim, rope_dim, new in ((16, 64, 16, [1, 9]), (40, 20, 7, [1, 1])):
        width = value_dim + rope_dim
        case = make_case(heads, 1, width, [550, 9], new, dtype=dtype)
        _, key, _, table, starts, context, _ = case.arguments()
        arguments = (case.q, key[:, :, 0].contiguous(), table, starts, context, 0.2, value_dim)
        with using(variant):
            got = paged_latent_attention(*arguments)
        expected = reference.paged_latent_attention(*arguments)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_written_rows_lie_in_their_slots_rounded_as_torch_rounds(dtype: torch.dtype) -> None:
    values = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(7))
    values[0, 0, :3] = torch.tensor([float("nan"), float("inf"), 1e-40])
    slots = torch.tensor([3, 11, 0, 7, 8], dtype=torch.int32)
    native, expected = torch.zeros(3, 4, 2, 7, dtype=dtype), torch.zeros(3, 4, 2, 7, dtype=dtype)
    write_cache(native, values, slots)
    reference.write_cache(expected, values, slots)
    assert torch.equal(native.nan_to_num(123), expected.nan_to_num(123))


def test_blocks_slots_and_contexts_outside_the_cache_are_refused() -> None:
    case = make_case(2, 1, 8, [20], [1])
    case.table[0, 1] = 99
    with pytest.raises(KernelError, match="block table"):
        paged_attention(*case.arguments())
    case = make_case(2, 1, 8, [20], [1])
    case.context[0] = 33
    with pytest.raises(KernelError, match="context"):
        paged_attention(*case.arguments())
    with pytest.raises(KernelError, match="slot"):
        write_cache(torch.zeros(2, 4, 1, 8), torch.zeros(1, 1, 8), torch.tensor([8]))
    with pytest.raises(KernelError, match="do not fit"):
        paged_attention(torch.zeros(1, 2, 9), *case.arguments()[1:])


def test_torch_fallback_attends_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = CASES["mixed chunks"].arguments()
    native = paged_attention(*arguments)
    with without_native(monkeypatch):
        torch.testing.assert_close(paged_attention(*arguments), native, rtol=1e-5, atol=5e-6)
