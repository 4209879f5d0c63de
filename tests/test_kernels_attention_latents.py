"""MLA's latents in an int8 cache: against the torch reference and exact attention."""

import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_variants import VARIANTS, examples, using
from torch import Tensor

from mull.errors import KernelError
from mull.kernels import int8_cache, library, paged_latent_attention, reference, write_latents


@dataclass
class Case:
    """Latents of sequences in shuffled blocks, as float32 and as an int8 cache."""

    q: Tensor
    exact: Tensor
    cache: Tensor
    table: Tensor
    starts: Tensor
    context: Tensor
    value_dim: int

    def attend(self, cache: Tensor) -> Tensor:
        tables = (self.table, self.starts, self.context)
        return paged_latent_attention(self.q, cache, *tables, 0.2, self.value_dim)

    def expected(self, cache: Tensor) -> Tensor:
        tables = (self.table, self.starts, self.context)
        return reference.paged_latent_attention(self.q, cache, *tables, 0.2, self.value_dim)


def make_case(
    heads: int, value_dim: int, rope_dim: int, contexts: list[int], new: list[int]
) -> Case:
    width = value_dim + rope_dim
    generator = torch.Generator().manual_seed(heads + width)
    counts = [-(-context // 16) for context in contexts]
    blocks = list(range(sum(counts) + 2))
    random.Random(0).shuffle(blocks)
    table = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    exact = torch.zeros(len(blocks), 16, width)
    bytes_per_row = int8_cache.latent_row_bytes(width, value_dim)
    cache = torch.randint(-128, 128, (len(blocks), 16, bytes_per_row), generator=generator)
    cache = cache.to(torch.int8)
    for b, context in enumerate(contexts):
        table[b, : counts[b]] = torch.tensor([blocks.pop() for _ in range(counts[b])])
        slots = table[b].repeat_interleave(16)[:context] * 16 + torch.arange(context) % 16
        rows = torch.randn(context, width, generator=generator)
        rows[:, value_dim:] *= 5  # the roped key is not normed: its scale must be its own
        exact.view(-1, width)[slots.long()] = rows
        write_latents(cache, rows, slots, value_dim)
    starts = torch.tensor([0, *new]).cumsum(0).to(torch.int32)
    q = torch.randn(sum(new), heads, width, generator=generator) / width**0.5
    lengths = torch.tensor(contexts, dtype=torch.int32)
    return Case(q, exact, cache, table, starts, lengths, value_dim)


SHAPES = {
    "v2-lite": (16, 512, 64, [300, 20], [1, 1]),
    "many heads": (40, 64, 16, [550, 9], [1, 9]),
    "odd widths": (5, 20, 7, [70, 33], [12, 1]),
    "no roped part": (3, 16, 0, [40], [3]),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SHAPES)
def test_attention_over_int8_latents_equals_the_reference(variant: str, name: str) -> None:
    with using(variant):
        case = make_case(*SHAPES[name])
        got = case.attend(case.cache)
    expected = case.expected(case.cache)
    torch.testing.assert_close(got, expected, rtol=0, atol=4e-3)
    assert (got - expected).abs().mean() < 2e-5


@pytest.mark.parametrize("name", SHAPES)
def test_attention_over_int8_latents_stays_within_two_percent_of_exact(name: str) -> None:
    case = make_case(*SHAPES[name])
    got, exact = case.attend(case.cache), case.expected(case.exact)
    assert (got - exact).norm() < 0.02 * exact.norm()


@examples(25)
@given(
    variant=st.sampled_from(library.supported() or ["portable"]),
    heads=st.integers(1, 35),
    value_dim=st.integers(1, 70),
    rope_dim=st.integers(0, 33),
    sequences=st.lists(st.tuples(st.integers(1, 540), st.integers(0, 20)), min_size=1, max_size=3),
)
def test_any_shape_equals_the_reference(
    variant: str, heads: int, value_dim: int, rope_dim: int, sequences: list[tuple[int, int]]
) -> None:
    contexts = [context for context, _ in sequences]
    new = [min(context, count) for context, count in sequences]
    with using(variant):
        case = make_case(heads, value_dim, rope_dim, contexts, new)
        got = case.attend(case.cache)
    torch.testing.assert_close(got, case.expected(case.cache), rtol=0, atol=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_token_attends_to_the_same_bits_in_any_chunk_batch_or_number_of_threads(
    variant: str, threads: int
) -> None:
    before = torch.get_num_threads()
    with using(variant):
        case = make_case(6, 32, 16, [600, 40], [600, 40])
        whole = case.attend(case.cache)
        torch.set_num_threads(threads)
        for first, count in ((0, 1), (0, 13), (255, 2), (500, 12), (599, 1)):
            part = Case(
                case.q[first : first + count],
                case.exact,
                case.cache,
                case.table[:1],
                torch.tensor([0, count], dtype=torch.int32),
                torch.tensor([first + count], dtype=torch.int32),
                case.value_dim,
            )
            assert torch.equal(part.attend(case.cache), whole[first : first + count])
        torch.set_num_threads(before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_written_latents_are_the_references(variant: str) -> None:
    rows = torch.randn(30, 24, generator=torch.Generator().manual_seed(4))
    slots = torch.randperm(48, generator=torch.Generator().manual_seed(5))[:30]
    got, expected = torch.zeros(2, 3, 16, int8_cache.latent_row_bytes(24, 17), dtype=torch.int8)
    with using(variant):
        write_latents(got, rows, slots, 17)
    int8_cache.write_latents(expected, rows, slots, 17)
    assert (got != expected).float().mean() < 1e-2
    codes, scales = int8_cache.latents(got, 24, 17)
    back = (codes[..., :17] * scales[..., :1]).view(48, 17)[slots]
    assert (back - rows[:, :17]).abs().max() < 0.51 * scales.max()


def test_latents_that_do_not_fit_are_refused() -> None:
    rows, slot = torch.zeros(1, 24), torch.tensor([0])
    with pytest.raises(KernelError, match="do not fit"):
        write_latents(torch.zeros(1, 16, 40, dtype=torch.int8), rows, slot, 16)
    with pytest.raises(KernelError, match="multiple of 16"):
        write_latents(torch.zeros(1, 8, 48, dtype=torch.int8), rows, slot, 16)
