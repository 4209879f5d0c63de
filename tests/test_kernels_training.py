"""What a training step does in native code, forward and backward, against autograd in float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from kernel_variants import VARIANTS, examples, using
from torch import Tensor

from mull.errors import KernelError
from mull.kernels import training

# So large that no row of one small number is made a large one.
EPS = 0.1
SEEDS = st.integers(0, 10_000)
LENGTHS = st.lists(st.sampled_from([1, 2, 7, 15, 16, 17, 24, 25, 60, 130]), min_size=1, max_size=6)


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def exact(
    function: Callable[..., Tensor], tensors: list[Tensor], upstream: Tensor
) -> tuple[Tensor, ...]:
    """(result, gradient of each tensor), in float64."""
    wide = [x.double().requires_grad_() for x in tensors]
    out = function(*wide)
    return (out, *torch.autograd.grad(out, wide, upstream.double()))


def assert_near(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], seen: str = "") -> None:
    for index, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        size = max(1.0, float(theirs.detach().abs().max()) if theirs.numel() else 1.0)
        torch.testing.assert_close(
            ours.double(), theirs.detach(), rtol=1e-5, atol=2e-6 * size, msg=f"{seen} {index}"
        )


@pytest.mark.parametrize("variant", VARIANTS)
@given(rows=st.integers(0, 200), width=st.integers(1, 150), apart=st.integers(0, 9), seed=SEEDS)
@examples(40)
def test_norm(variant: str, rows: int, width: int, apart: int, seed: int) -> None:
    wide_SD, weight_D, upstream_SD = drawn(seed, (rows, width + apart), (width,), (rows, width))
    x_SD = wide_SD[:, :width] if seed % 3 else wide_SD[:, :width].T.contiguous().T
    with using(variant):
        y_SD, inverse_S = training.norm(x_SD, weight_D, EPS)
        gradients = training.norm_backward(x_SD, weight_D, inverse_S, upstream_SD)
    wanted = exact(lambda x, w: F.rms_norm(x, (width,), w, EPS), [x_SD, weight_D], upstream_SD)
    assert_near((y_SD, *gradients), wanted)


@pytest.mark.parametrize("variant", VARIANTS)
@given(rows=st.integers(0, 200), width=st.integers(1, 150), apart=st.integers(0, 9), seed=SEEDS)
@examples(40)
def test_gated(variant: str, rows: int, width: int, apart: int, seed: int) -> None:
    stride = 2 * width + apart
    both_S2F, upstream_SF = drawn(seed, (rows, stride), (rows, width))
    gate_SF, up_SF = both_S2F[:, :width].mul_(4), both_S2F[:, width : 2 * width]
    up_SF = up_SF if seed % 3 else up_SF.T.contiguous().T
    of_both, again_SF = torch.full((rows, stride), torch.nan), torch.empty(rows, width)
    of_gate_SF, of_up_SF = of_both[:, :width], of_both[:, width : 2 * width]
    with using(variant):
        inner_SF = training.gated(gate_SF, up_SF)
        training.gated_backward(gate_SF, up_SF, upstream_SF, of_gate_SF, of_up_SF, again_SF)
    wanted = exact(lambda gate, up: F.silu(gate) * up, [gate_SF, up_SF], upstream_SF)
    assert_near((inner_SF, of_gate_SF, of_up_SF), wanted)
    torch.testing.assert_close(again_SF, inner_SF)
    assert of_both[:, 2 * width :].isnan().all(), "written beside its rows"


@pytest.mark.parametrize("variant", VARIANTS)
@given(tokens=st.integers(1, 90), each=st.integers(1, 4), width=st.integers(1, 90), seed=SEEDS)
@examples(40)
def test_weighted_sums(variant: str, tokens: int, each: int, width: int, seed: int) -> None:
    rows = tokens * each
    order_S = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    places_Tk = order_S.argsort().view(tokens, each)
    table_SD, weights_S, upstream_TD = drawn(seed, (rows, width), (rows,), (tokens, width))
    with using(variant):
        out_TD = training.summed(table_SD, places_Tk, weights_S)
        plain_TD = training.summed(table_SD, places_Tk)
        gradients = training.dealt(upstream_TD, order_S // each, weights_S, table_SD)

    def sums(table_SD: Tensor, weights_S: Tensor) -> Tensor:
        return (table_SD * weights_S[:, None])[places_Tk].sum(1)

    assert_near((out_TD, *gradients), exact(sums, [table_SD, weights_S], upstream_TD))
    assert_near((plain_TD,), (sums(table_SD.double(), torch.ones(rows).double()),))


@pytest.mark.parametrize("variant", VARIANTS)
@given(
    lengths=LENGTHS,
    heads=st.sampled_from([(1, 1), (3, 3), (6, 2), (4, 1)]),
    widths=st.sampled_from([(16, 16), (48, 32), (32, 64), (80, 16)]),
    left_out=st.integers(0, 3),
    seed=SEEDS,
)
@examples(40)
def test_attention(
    variant: str,
    lengths: list[int],
    heads: tuple[int, int],
    widths: tuple[int, int],
    left_out: int,
    seed: int,
) -> None:
    """Every sequence but those left out, the first and every third after it."""
    (queries, keys), (width, out_width), scale = heads, widths, 0.3
    tokens = sum(lengths)
    q_THd, kv_TGx = drawn(seed, (tokens, queries, width), (tokens, keys, width + out_width))
    k_TGd, v_TGe = kv_TGx.split((width, out_width), dim=-1)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    every = [(length, end - length) for length, end in zip(lengths, ends, strict=True)]
    spans = [span for index, span in enumerate(every) if not left_out or index % 3]
    own = [range(first, first + length) for length, first in spans]
    rows_T = torch.tensor([row for some in own for row in some], dtype=torch.int64)
    (upstream_THe,) = drawn(seed + 1, (len(rows_T), queries, out_width))
    placed = training.Spans.of(spans)
    with using(variant):
        out_THe, softmax = training.attended(q_THd, k_TGd, v_TGe, placed, len(rows_T), scale)
        gradients = training.attended_backward(
            q_THd, k_TGd, v_TGe, placed, scale, softmax, upstream_THe
        )

    def attention(q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor) -> Tensor:
        parts = [
            F.scaled_dot_product_attention(
                *(x[first : first + length].transpose(0, 1) for x in (q_THd, k_TGd, v_TGe)),
                is_causal=True,
                scale=scale,
                enable_gqa=True,
            ).transpose(0, 1)
            for length, first in spans
        ]
        none = (q_THd.sum() + k_TGd.sum() + v_TGe.sum()) * 0
        return (torch.cat(parts) if parts else q_THd.new_zeros(0, queries, out_width)) + none

    wanted = exact(attention, [q_THd, k_TGd, v_TGe], upstream_THe)
    assert_near((out_THe, *gradients), wanted, f"{lengths} {spans}")


@pytest.mark.parametrize("variant", VARIANTS)
@given(
    rows=st.integers(0, 60),
    vocabulary=st.integers(1, 500),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    seed=SEEDS,
)
@examples(40)
def test_tokens(variant: str, rows: int, vocabulary: int, temperature: float, seed: int) -> None:
    logits_SV, upstream_S = drawn(seed, (rows, vocabulary), (rows,))
    logits_SV *= 2
    targets_S = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))
    gradient_SV = logits_SV.clone()
    with using(variant):
        logprob_S, entropy_S, normaliser_S, is_top_S = training.token_statistics(
            logits_SV, targets_S, temperature
        )
        training.token_gradients(gradient_SV, targets_S, normaliser_S, upstream_S, temperature)

    def logprobs(logits_SV: Tensor) -> Tensor:
        return (logits_SV / temperature).log_softmax(-1).gather(1, targets_S[:, None])[:, 0]

    wanted = exact(logprobs, [logits_SV], upstream_S)
    assert_near((logprob_S,), wanted[:1])
    # The exponent is a difference of two numbers of this size.
    error = 1e-6 * max(1.0, float(normaliser_S.abs().max()) if rows else 1.0)
    torch.testing.assert_close(gradient_SV.double(), wanted[1], rtol=1e-5, atol=error)
    exact_SV = (logits_SV.double() / temperature).log_softmax(-1)
    assert_near((entropy_S,), (-(exact_SV.exp() * exact_SV).sum(-1),))
    assert_near((normaliser_S,), ((logits_SV.double() / temperature).logsumexp(-1),))
    own_S = logits_SV.gather(1, targets_S[:, None])[:, 0]
    assert torch.equal(is_top_S, own_S == logits_SV.amax(-1) if vocabulary else is_top_S)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_damaged_number_is_not_hidden(variant: str) -> None:
    logits_SV = torch.zeros(4, 50)
    logits_SV[0, 7] = torch.nan
    logits_SV[1, 7] = torch.inf
    logits_SV[2, 7] = -torch.inf
    with using(variant):
        logprob_S, entropy_S, *_ = training.token_statistics(logits_SV, torch.ones(4).long(), 1.0)
        x_SD, weight_D = torch.ones(3, 20), torch.ones(20)
        x_SD[1, 3] = torch.nan
        y_SD, _ = training.norm(x_SD, weight_D, 1e-6)
    assert logprob_S.isfinite().tolist() == [False, False, True, True]
    assert entropy_S.isfinite().tolist() == [False, False, True, True]
    assert y_SD.isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.skipif(not training.can_train(torch.ones(1)), reason="no native kernels")
@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_beyond_the_table_is_refused(row: int) -> None:
    table_SD, weights_S = torch.ones(5, 8), torch.ones(5)
    places = torch.tensor([0, 1, 2, 3, row])
    with pytest.raises(KernelError, match="row number"):
        training.summed(table_SD, places.view(5, 1), weights_S)
    with pytest.raises(KernelError, match="row number"):
        training.dealt(table_SD, places, weights_S, table_SD)
    with pytest.raises(KernelError, match="vocabulary"):
        training.token_statistics(torch.ones(5, 5), places, 1.0)


@pytest.mark.parametrize(
    "odd",
    [
        torch.ones(2, dtype=torch.float64),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2).to("meta"),
    ],
)
def test_other_types_and_places_are_left_to_torch(odd: Tensor) -> None:
    assert not training.can_train(torch.ones(2), odd)
