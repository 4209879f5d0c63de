"""Packed products against the torch reference, in every instruction set of this machine."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_variants import VARIANTS, examples, using, without_native
from torch import nn

from mull.errors import KernelError
from mull.kernels import PackedLinear, reference

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KINDS = [*DTYPES, "q8", "q4"]
SHAPES = [(1, 3), (15, 33), (17, 64), (33, 1), (100, 31), (192, 576)]


def _weights(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n * 1000 + k)
    return torch.randn(n, k, generator=generator), torch.randn(n, generator=generator)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", DTYPES)
def test_packed_linear_equals_the_reference_for_odd_shapes_and_any_number_of_rows(
    variant: str, kind: str
) -> None:
    with using(variant):
        for n, k in SHAPES:
            weight, bias = _weights(n, k)
            packed = PackedLinear.pack(weight, bias, kind)
            x = torch.randn(40, k, generator=torch.Generator().manual_seed(1))
            for rows in (1, 2, 3, 5, 6, 7, 12, 13, 40):
                expected = reference.linear(x[:rows], weight.to(DTYPES[kind]), bias)
                torch.testing.assert_close(packed(x[:rows]), expected, rtol=1e-5, atol=2e-4)


def _all_rows(packed: PackedLinear) -> torch.Tensor:
    return packed.rows(torch.arange(packed.out_features))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["q8", "q4"])
@examples(25)
@given(
    n=st.integers(1, 70),
    k=st.integers(1, 200) | st.sampled_from([576, 2050]),
    rows=st.integers(1, 30),
    spread=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_quantised_product_is_that_of_its_weights_with_quantised_activations(
    variant: str, kind: str, n: int, k: int, rows: int, spread: float
) -> None:
    with using(variant):
        weight, bias = _weights(n, k)
        packed = PackedLinear.pack(weight, bias, kind)
        x = spread * torch.randn(rows, k, generator=torch.Generator().manual_seed(rows))
        expected = reference.quantised_activations(x).double() @ _all_rows(packed).double().T
        got = packed(x).double() - bias
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * spread * k**0.5 + 1e-6)


@pytest.mark.parametrize(("kind", "steps"), [("q8", 255), ("q4", 15)])
def test_quantised_weights_lie_within_half_a_step_or_cost_less_in_all(
    kind: str, steps: int
) -> None:
    weight, _ = _weights(48, 320)
    got = _all_rows(PackedLinear.pack(weight, None, kind))
    groups = weight.unflatten(1, (-1, 32))
    whole = groups.abs().amax(-1) * 2 if kind == "q8" else groups.amax(-1) - groups.amin(-1)
    nearest = reference.quantised_weights(weight, kind)
    error, expected = (got - weight).square().sum(), (nearest - weight).square().sum()
    assert error <= expected * 1.001
    assert ((got - weight).unflatten(1, (-1, 32)).abs().amax(-1) <= 2 * whole / steps).all()


def test_weights_on_a_grid_of_sixteen_steps_are_kept() -> None:
    generator = torch.Generator().manual_seed(9)
    scale = torch.rand(20, 4, 1, generator=generator).half().float() + 0.1
    start = torch.randn(20, 4, 1, generator=generator).half().float()
    steps = torch.randint(0, 16, (20, 4, 32), generator=generator).float()
    steps[..., 0], steps[..., 1] = 0, 15
    weight = (start + scale.half().float() * steps).flatten(1)
    got = _all_rows(PackedLinear.pack(weight, None, "q4"))
    torch.testing.assert_close(got, weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_whatever_rows_it_is_computed_with(variant: str, kind: str) -> None:
    weight, bias = _weights(70, 97)
    x = torch.randn(300, 97, generator=torch.Generator().manual_seed(2))
    with using(variant):
        packed = PackedLinear.pack(weight, bias, kind)
        alone = torch.cat([packed(row[None]) for row in x])
        for rows in (2, 4, 6, 7, 11, 16, 40, 300):
            assert torch.equal(packed(x[:rows]), alone[:rows])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_whatever_the_number_of_threads(variant: str, kind: str) -> None:
    weight, _ = _weights(200, 64)
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(3))
    threads = torch.get_num_threads()
    with using(variant):
        packed = PackedLinear.pack(weight, None, kind)
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(packed(x))
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_nan_spoils_no_other_row(variant: str, kind: str) -> None:
    weight, _ = _weights(33, 50)
    x = torch.randn(9, 50, generator=torch.Generator().manual_seed(4))
    spoilt = x.clone()
    spoilt[4] = float("nan")
    with using(variant):
        packed = PackedLinear.pack(weight, None, kind)
        clean, got = packed(x), packed(spoilt)
    assert got[4].isnan().all()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(got[others], clean[others])


@pytest.mark.parametrize("kind", DTYPES)
def test_rows_give_back_the_weights_of_a_tied_embedding(kind: str) -> None:
    weight, _ = _weights(37, 19)
    packed = PackedLinear.pack(weight, None, kind)
    ids = torch.tensor([[0, 36, 5], [16, 15, 5]])
    assert torch.equal(packed.rows(ids), weight.to(DTYPES[kind])[ids].float())


def test_rows_refuse_ids_outside_the_vocabulary() -> None:
    packed = PackedLinear.pack(_weights(37, 19)[0], None, "fp32")
    with pytest.raises(KernelError, match="vocabulary of 37"):
        packed.rows(torch.tensor([37]))


def test_from_linear_keeps_leading_axes_bias_and_input_dtype() -> None:
    torch.manual_seed(5)
    linear = nn.Linear(20, 30)
    packed = PackedLinear.from_linear(linear, "fp32")
    x = torch.randn(2, 3, 20)
    torch.testing.assert_close(packed(x), linear(x).detach())
    assert packed(x.bfloat16()).dtype == torch.bfloat16


def test_wrong_width_and_wrong_kind_are_refused_in_one_line() -> None:
    weight, _ = _weights(4, 8)
    with pytest.raises(KernelError, match="8 inputs was given rows of 9"):
        PackedLinear.pack(weight, None, "fp32")(torch.zeros(1, 9))
    with pytest.raises(KernelError, match="float16"):
        PackedLinear.pack(weight, None, "float16")


def test_torch_fallback_computes_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = _weights(33, 47)
    x = torch.randn(5, 47, generator=torch.Generator().manual_seed(6))
    ids = torch.tensor([0, 32, 7])
    for kind in DTYPES:
        native = PackedLinear.pack(weight, bias, kind)
        expected, rows = native(x), native.rows(ids)
        with without_native(monkeypatch):
            fallback = PackedLinear.pack(weight, bias, kind)
            torch.testing.assert_close(fallback(x), expected, rtol=1e-5, atol=1e-4)
            assert torch.equal(fallback.rows(ids), rows)
