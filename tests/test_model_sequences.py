"""Attention inside packed sequences of any lengths against a loop over single queries' softmax."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mull.model import PackedSequences
from mull.model.short_attention import ShortLayout

# Around the border between sequences attended side by side and one by one.
LENGTHS = st.lists(
    st.sampled_from([1, 2, 3, 7, 20, 21, 60, 255, 256, 257, 280]), min_size=1, max_size=9
)
HEADS = [(4, 4, 12, 10), (6, 2, 8, 8), (4, 1, 8, 12)]  # query heads, key heads, widths


def made(lengths: list[int], heads: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(sum(lengths))
    query_heads, key_heads, width, value_width = heads
    shapes = ((query_heads, width), (key_heads, width), (key_heads, value_width))
    tokens = sum(lengths)
    return [torch.randn(tokens, *s, dtype=dtype, requires_grad=True) for s in shapes]


def plainly(lengths: list[int], tensors: list[Tensor], scale: float) -> Tensor:
    repeats = tensors[0].shape[1] // tensors[1].shape[1]
    outs = []
    for q, k, v in zip(*(x.split(lengths) for x in tensors), strict=True):
        k_THd, v_THe = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores_HTT = torch.einsum("thd,shd->hts", q, k_THd) * scale
        future_TT = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
        weights_HTT = scores_HTT.masked_fill(future_TT, float("-inf")).softmax(-1)
        outs.append(torch.einsum("hts,she->the", weights_HTT, v_THe))
    return torch.cat(outs)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, heads=st.sampled_from(HEADS))
def test_outputs_and_gradients_equal_one_sequence_at_a_time(
    lengths: list[int], heads: tuple[int, ...]
) -> None:
    tensors = made(lengths, heads, torch.float64)
    ours = PackedSequences(lengths).attend(0, *tensors, 0.3)
    theirs = plainly(lengths, tensors, 0.3)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), tensors),
        torch.autograd.grad((theirs * weights).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("heads", HEADS)
def test_bfloat16_is_reckoned_in_float32(heads: tuple[int, ...]) -> None:
    lengths = [40, 9, 40, 38]
    tensors = [x.detach().bfloat16().requires_grad_() for x in made(lengths, heads, torch.float32)]
    ours = PackedSequences(lengths).attend(0, *tensors, 0.3)
    exact = plainly(lengths, [x.float() for x in tensors], 0.3)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, rtol=2**-8, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(PackedSequences(lengths).attend(0, *tensors, 0.3), ours)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 256), min_size=1, max_size=200))
def test_few_padded_tokens_and_few_buckets(lengths: list[int]) -> None:
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
    layout = ShortLayout(list(zip(lengths, starts, strict=True)), None)
    padded = sum(bucket.sequences * bucket.length for bucket in layout.buckets)
    assert padded <= 1.2 * sum(lengths) + 4 * len(lengths)
    assert len(layout.buckets) <= 20
    taken_P, back_T = layout.places(3)
    assert torch.equal(taken_P[back_T], torch.arange(3 * sum(lengths)))
