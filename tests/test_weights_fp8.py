"""FP8 blocks against a reference that decodes e4m3 bit by bit and applies each scale in a loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.weights import fp8

SHAPES = [(128, 128), (256, 384), (1, 1), (129, 127), (130, 257), (7, 300), (300, 7), (576, 64)]


def e4m3_value(byte: int) -> float:
    """OCP 8-bit float: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity, 0x7f is NaN."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


E4M3 = np.array([e4m3_value(byte) for byte in range(256)])


def reference(bytes_NK: np.ndarray, scale_rc: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    values = E4M3[bytes_NK]
    for row in range(scale_rc.shape[0]):
        for column in range(scale_rc.shape[1]):
            rows = slice(row * block[0], (row + 1) * block[0])
            columns = slice(column * block[1], (column + 1) * block[1])
            values[rows, columns] *= scale_rc[row, column]
    return values


def random_blocks(
    shape: tuple[int, int], block: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    bytes_NK = rng.integers(0, 256, shape, np.uint8)
    bytes_NK[bytes_NK & 0x7F == 0x7F] = 0  # NaN is not a weight
    return bytes_NK, rng.uniform(1e-4, 3.0, fp8.scale_shape(shape, block)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_dequantise_as_the_reference_does(shape: tuple[int, int]) -> None:
    bytes_NK, scale_rc = random_blocks(shape, fp8.BLOCK, 0)
    weight = torch.from_numpy(bytes_NK).view(torch.float8_e4m3fn)
    ours = fp8.dequantise(weight, torch.from_numpy(scale_rc))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, reference(bytes_NK, scale_rc, fp8.BLOCK), rtol=1e-6)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([(128, 128), (64, 32), (1, 128), (100, 7)]),
    st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_and_block_dequantises(
    rows: int, columns: int, block: tuple[int, int], seed: int
) -> None:
    bytes_NK, scale_rc = random_blocks((rows, columns), block, seed)
    weight = torch.from_numpy(bytes_NK).view(torch.float8_e4m3fn)
    ours = fp8.dequantise(weight, torch.from_numpy(scale_rc), block)
    np.testing.assert_allclose(ours, reference(bytes_NK, scale_rc, block), rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_round_trip_loses_at_most_half_a_step_of_each_value(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.02
    values, scale_rc = fp8.quantise(weight)
    assert values.dtype == torch.float8_e4m3fn
    assert values.shape == weight.shape
    assert scale_rc.shape == fp8.scale_shape(shape)
    back = reference(values.view(torch.uint8).numpy(), scale_rc.numpy(), fp8.BLOCK)
    # A step is 1/8 of the power of two below; subnormals step by 2^-9 of the block's scale.
    smallest = np.kron(scale_rc.numpy(), np.ones(fp8.BLOCK))[: shape[0], : shape[1]] * 2.0**-10
    allowed = np.maximum(np.abs(weight.numpy()) / 16, smallest) * (1 + 1e-5)
    assert np.all(np.abs(back - weight.numpy()) <= allowed)


def test_the_largest_of_a_block_becomes_448_and_comes_back() -> None:
    weight = torch.full((200, 200), 0.001)
    weight[3, 5], weight[150, 199] = -7.0, 2.5
    values, scale_rc = fp8.quantise(weight)
    assert values[3, 5].float() == -448
    assert values[150, 199].float() == 448
    back = fp8.dequantise(values, scale_rc)
    torch.testing.assert_close(back[3, 5], torch.tensor(-7.0))
    torch.testing.assert_close(back[150, 199], torch.tensor(2.5))


def test_zeros_stay_zeros() -> None:
    values, scale_rc = fp8.quantise(torch.zeros(130, 5))
    assert torch.isfinite(scale_rc).all()
    assert not fp8.dequantise(values, scale_rc).any()


def test_quantising_what_was_dequantised_changes_nothing() -> None:
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(2))
    values, scale_rc = fp8.quantise(weight)
    again, scale_again = fp8.quantise(fp8.dequantise(values, scale_rc))
    torch.testing.assert_close(scale_again, scale_rc)
    assert torch.equal(again.view(torch.uint8), values.view(torch.uint8))
