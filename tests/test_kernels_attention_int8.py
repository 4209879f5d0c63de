"""The int8 cache: its arithmetic against the torch reference, its error against exact attention,
and what its results may not depend on."""

import dataclasses
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_variants import VARIANTS, examples, using, without_native
from test_kernels_attention import Case, make_case

from mull.errors import KernelError
from mull.kernels import int8_cache, library, paged_attention, reference, write_keys, write_values


def quantised(case: Case) -> Case:
    """The same sequences in an int8 cache; slots that hold no key are left as NaN in the original
    and arbitrary here."""
    blocks, size, heads, dim = case.key.shape
    shape = (blocks, size, heads, int8_cache.row_bytes(dim))
    generator = torch.Generator().manual_seed(1)
    key = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
    value = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
    written = ~case.key.isnan().view(blocks * size, -1).any(-1)
    slots = written.nonzero()[:, 0]
    write_keys(key, case.key.view(-1, heads, dim)[slots], slots)
    write_values(value, case.value.view(-1, heads, dim)[slots], slots)
    return dataclasses.replace(case, key=key, value=value)


CASES = {
    "decode": make_case(9, 3, 64, [20, 7, 600, 16], [1, 1, 1, 1]),
    "prefill": make_case(9, 3, 64, [20, 7, 33], [20, 7, 33]),
    "mixed chunks": make_case(4, 2, 32, [1, 257, 256, 90], [1, 1, 2, 40]),
    "narrow": make_case(2, 2, 4, [1, 65, 40], [1, 1, 40]),
    "width of no power of two": make_case(3, 1, 20, [300, 5], [1, 5]),
    "one key head for many": make_case(32, 1, 24, [700, 3], [1, 3]),
    "seven to one, blocks of 32": make_case(7, 1, 128, [130], [70], block_size=32),
    "long": make_case(2, 1, 64, [1600], [1]),
    "an idle sequence": make_case(2, 1, 16, [20, 5], [0, 1]),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CASES)
def test_attention_over_int8_equals_the_reference(variant: str, name: str) -> None:
    with using(variant):
        arguments = quantised(CASES[name]).arguments()
        got = paged_attention(*arguments)
    # A weight that lies on the border of two bytes may fall to either: 1/255 of the largest.
    expected = reference.paged_attention(*arguments)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)
    assert (got - expected).abs().mean() < 2e-5


@pytest.mark.parametrize("name", CASES)
def test_attention_over_int8_stays_within_two_percent_of_exact_attention(name: str) -> None:
    case = CASES[name]
    got = paged_attention(*quantised(case).arguments())
    exact = reference.paged_attention(*case.arguments())
    assert (got - exact).norm() < 0.02 * exact.norm()


def test_an_outlying_channel_of_the_keys_costs_no_accuracy() -> None:
    case = make_case(4, 2, 64, [200], [1])
    case.key[..., 5] *= 40
    case.q[..., 5] /= 40
    got = paged_attention(*quantised(case).arguments())
    exact = reference.paged_attention(*case.arguments())
    assert (got - exact).norm() < 0.15 * exact.norm()


@examples(40)
@given(
    variant=st.sampled_from(library.supported() or ["portable"]),
    groups=st.integers(1, 13),
    kv_heads=st.integers(1, 3),
    dim=st.integers(1, 20).map(lambda n: 4 * n),
    sequences=st.lists(st.tuples(st.integers(1, 540), st.integers(0, 30)), min_size=1, max_size=4),
)
def test_any_shape_equals_the_reference(
    variant: str, groups: int, kv_heads: int, dim: int, sequences: list[tuple[int, int]]
) -> None:
    contexts = [context for context, _ in sequences]
    new = [min(context, count) for context, count in sequences]
    case = make_case(groups * kv_heads, kv_heads, dim, contexts, new)
    with using(variant):
        arguments = quantised(case).arguments()
        got = paged_attention(*arguments)
    torch.testing.assert_close(got, reference.paged_attention(*arguments), rtol=0, atol=6e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_token_attends_to_the_same_bits_in_any_chunk_batch_or_number_of_threads(
    variant: str, threads: int
) -> None:
    before = torch.get_num_threads()
    with using(variant):
        case = quantised(make_case(6, 2, 32, [600, 40], [600, 40]))
        whole = paged_attention(*case.arguments())
        torch.set_num_threads(threads)
        for first, count in ((0, 1), (0, 13), (255, 2), (500, 12), (511, 3), (599, 1)):
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
def test_the_order_of_writing_and_the_place_of_blocks_change_no_bit(variant: str) -> None:
    rows = torch.randn(48, 2, 12, generator=torch.Generator().manual_seed(3))
    with using(variant):
        at_once = torch.zeros(3, 16, 2, 16, dtype=torch.int8)
        write_keys(at_once, rows, torch.arange(48))
        one_by_one = torch.full((5, 16, 2, 16), 77, dtype=torch.int8)
        order = list(range(48))
        random.Random(0).shuffle(order)
        for t in order:
            slot = (4, 1, 2)[t // 16] * 16 + t % 16
            write_keys(one_by_one, rows[t : t + 1], torch.tensor([slot]))
    assert torch.equal(one_by_one[[4, 1, 2]], at_once)


@pytest.mark.parametrize("variant", VARIANTS)
def test_written_bytes_are_the_references(variant: str) -> None:
    rows = torch.randn(40, 3, 64, generator=torch.Generator().manual_seed(4))
    rows[7] = 0
    slots = torch.randperm(64, generator=torch.Generator().manual_seed(5))[:40]
    for write, expected_write in (
        (write_keys, int8_cache.write_keys),
        (write_values, int8_cache.write_values),
    ):
        got, expected = torch.zeros(2, 4, 16, 3, 68, dtype=torch.int8)
        with using(variant):
            write(got, rows, slots)
        expected_write(expected, rows, slots)
        # Sums may differ in the last bit, and then a number may round to its neighbour.
        assert (got != expected).float().mean() < 1e-2


def test_what_is_written_comes_back_within_half_a_step() -> None:
    rows = torch.randn(32, 2, 24, generator=torch.Generator().manual_seed(6))
    key = torch.zeros(2, 16, 2, 28, dtype=torch.int8)
    value = torch.zeros_like(key)
    write_keys(key, rows, torch.arange(32))
    write_values(value, rows, torch.arange(32))
    for (codes, scales), original in (
        (int8_cache.keys(key), int8_cache.mix(rows)),
        (int8_cache.values(value), rows),
    ):
        back = (codes * scales[..., None]).flatten(0, 1)
        assert ((back - original).abs() <= 0.501 * scales.flatten(0, 1)[..., None]).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_number_that_is_none_spoils_its_own_sequence_alone(variant: str) -> None:
    case = make_case(4, 2, 16, [30, 30], [30, 30])
    with using(variant):
        clean = paged_attention(*quantised(case).arguments())
        spoilt = quantised(case)
        slot = torch.tensor([int(case.table[0, 1]) * 16 + 4])  # key 20 of sequence 0
        bad = torch.full((1, 2, 16), float("nan"))
        write_keys(spoilt.key, bad, slot)
        got = paged_attention(*spoilt.arguments())
        spoilt = quantised(case)
        write_values(spoilt.value, bad / 0.0, slot)
        got_value = paged_attention(*spoilt.arguments())
    for spoilt_rows in (got, got_value):
        assert torch.equal(spoilt_rows[:20], clean[:20])
        assert torch.equal(spoilt_rows[30:], clean[30:])
        assert spoilt_rows[20:30].isnan().all()


def test_torch_fallback_attends_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    native = paged_attention(*quantised(CASES["mixed chunks"]).arguments())
    with without_native(monkeypatch):
        alike = paged_attention(*quantised(CASES["mixed chunks"]).arguments())
    torch.testing.assert_close(alike, native, rtol=0, atol=6e-3)


def test_shapes_an_int8_cache_cannot_hold_are_refused() -> None:
    rows, slots = torch.zeros(1, 2, 6), torch.tensor([0])
    with pytest.raises(KernelError, match="multiple of 4"):
        write_keys(torch.zeros(1, 16, 2, 10, dtype=torch.int8), rows, slots)
    with pytest.raises(KernelError, match="multiple of 16"):
        write_keys(torch.zeros(1, 8, 2, 12, dtype=torch.int8), torch.zeros(1, 2, 8), slots)
    with pytest.raises(KernelError, match="do not fit"):
        write_keys(torch.zeros(1, 16, 3, 12, dtype=torch.int8), torch.zeros(1, 2, 8), slots)
    with pytest.raises(KernelError, match="slot"):
        write_keys(
            torch.zeros(1, 16, 2, 12, dtype=torch.int8), torch.zeros(1, 2, 8), torch.tensor([16])
        )
