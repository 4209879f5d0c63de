"""The draw of one token a row, in native code, against the definition in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_variants import VARIANTS, examples, using

from mull import kernels

INF = float("inf")


def make_logits(rows: int, vocabulary: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * 3.0


def expected(logits_V: torch.Tensor, inverse: float, noise: float) -> tuple[int, float, float]:
    """(token, chance of the likeliest, how near the noise comes to a neighbour's share)."""
    scale = inverse or 1.0
    chances_V = (logits_V.double() * scale).softmax(-1)
    if not inverse:
        return int(logits_V.argmax()), float(chances_V.max()), 1.0
    ends_V = chances_V.cumsum(-1)
    token = int((ends_V <= noise).sum())
    return token, float(chances_V.max()), float((ends_V - noise).abs().min())


@pytest.mark.parametrize("variant", VARIANTS)
@given(
    rows=st.integers(1, 9),
    vocabulary=st.integers(1, 700),
    padding=st.integers(0, 20),
    forbidden=st.integers(0, 3),
    seed=st.integers(0, 10_000),
)
@examples(60)
def test_every_row_is_drawn_as_its_definition_says(
    variant: str, rows: int, vocabulary: int, padding: int, forbidden: int, seed: int
) -> None:
    whole_BV = make_logits(rows, vocabulary + padding, seed)
    logits_BV = whole_BV[:, :vocabulary]
    logits_BV[:, 1 : 1 + forbidden] = -INF
    inverses = [(0.0, 1.0, 0.4, 3.0)[(seed + row) % 4] for row in range(rows)]
    noise = torch.rand(rows, generator=torch.Generator().manual_seed(seed)).tolist()
    scales = [(1.0, 0.4)[(seed // 7 + row) % 2] for row in range(rows)]
    with using(variant):
        tokens, chances, logprobs = kernels.draw(
            logits_BV, inverses, noise, tell_chances=True, logprob_scales=scales
        )
        alone = [
            kernels.draw(
                logits_BV[row : row + 1],
                inverses[row : row + 1],
                noise[row : row + 1],
                logprob_scales=scales[row : row + 1],
            )
            for row in range(rows)
        ]
    assert [token for (token,), *_ in alone] == tokens
    assert [logprob for *_, (logprob,) in alone] == logprobs
    for row, (token, chance) in enumerate(zip(tokens, chances, strict=True)):
        told = (logits_BV[row].double() * scales[row]).log_softmax(-1)[token]
        assert logprobs[row] == pytest.approx(float(told), abs=1e-4, rel=1e-5)
        wanted, likeliest, distance = expected(logits_BV[row], inverses[row], noise[row])
        assert token == wanted or distance < 1e-5
        assert logits_BV[row, token] > -INF
        assert chance == pytest.approx(likeliest, rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("vocabulary", [1, 5, 64, 131])
@pytest.mark.parametrize("damage", [float("nan"), INF])
def test_a_damaged_row_is_told_from_the_others(
    variant: str, vocabulary: int, damage: float
) -> None:
    logits_BV = make_logits(3, vocabulary, 1)
    logits_BV[1, vocabulary // 2] = damage
    logits_BV[2] = -INF
    with using(variant):
        for inverse in (0.0, 1.0):
            tokens, *_ = kernels.draw(logits_BV, [inverse] * 3, [0.5] * 3)
            assert tokens[0] >= 0
            assert tokens[1:] == [-1, -1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_of_equal_ones_and_never_one_of_no_weight(variant: str) -> None:
    logits_BV = torch.zeros(3, 400)
    logits_BV[1, [390, 7, 131]] = 50.0
    logits_BV[2] = -INF
    logits_BV[2, [5, 200]] = 1.0
    with using(variant):
        assert kernels.draw(logits_BV, [0.0] * 3, [0.9] * 3)[0] == [0, 7, 5]
        for noise in (0.0, 0.49, 0.51, 1 - 2**-48):
            tokens, *_ = kernels.draw(logits_BV, [1.0] * 3, [noise] * 3)
            assert tokens[2] == (5 if noise < 0.5 else 200)
            assert tokens[0] == int(noise * 400)


@pytest.mark.parametrize("variant", VARIANTS)
@given(
    vocabulary=st.integers(1, 700),
    spread=st.sampled_from([0.01, 1.0, 5.0]),
    filters=st.tuples(
        st.sampled_from([0, 1, 2, 50, 1000]),
        st.sampled_from([1.0, 0.999, 0.9, 0.3, 1e-9]),
        st.sampled_from([0.0, 1e-4, 0.05, 1.0]),
    ),
    seed=st.integers(0, 10_000),
)
@examples(80)
def test_filters_keep_the_likeliest_and_leave_them_their_shares(
    variant: str,
    vocabulary: int,
    spread: float,
    filters: tuple[int, float, float],
    seed: int,
) -> None:
    logits_V = torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * spread
    logits_V[:3] = logits_V[0]  # equal ones stand in order of their ids
    grid = [(i + 0.5) / 64 for i in range(64)]
    types = (torch.int64, torch.float64, torch.float32)
    wanted = kernels.Filters(
        *(torch.full((len(grid),), x, dtype=t) for x, t in zip(filters, types, strict=True))
    )
    with using(variant):
        tokens, *_ = kernels.draw(
            logits_V.repeat(len(grid), 1), [1.0] * len(grid), grid, filters=wanted
        )
    weights_V = (logits_V - logits_V.max()).exp().double()
    order = sorted(range(vocabulary), key=lambda token: (-float(weights_V[token]), token))
    top_k, top_p, min_p = filters
    order = order[: top_k or vocabulary]
    mass, kept = top_p * float(weights_V[order].sum()), order[:1]
    for token in order[1:]:
        ends = float(weights_V[kept].sum())
        if (top_p < 1.0 and ends >= mass) or float(weights_V[token]) < min_p:
            break
        kept.append(token)
    if top_k in (0, *range(vocabulary, 1001)) and (top_p, min_p) == (1.0, 0.0):
        kept.sort()  # nothing is filtered
    ends_K = weights_V[kept].cumsum(-1) / weights_V[kept].sum()
    for noise, token in zip(grid, tokens, strict=True):
        near = [kept[i] for i in range(len(kept)) if _covers(ends_K, i, noise)]
        # Of logits nearly equal, rounding may make another the heavier one.
        assert any(abs(weights_V[token] - weights_V[each]) < 1e-6 for each in near)


def _covers(ends_K: torch.Tensor, i: int, noise: float) -> bool:
    """Whether entry i is drawn at this noise, or at one nearby."""
    start = float(ends_K[i - 1]) if i else 0.0
    return start - 2e-3 <= noise <= float(ends_K[i]) + 2e-3
