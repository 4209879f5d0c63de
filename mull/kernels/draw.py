"""One token for each row of logits, in native code: the likeliest, or by inverse cumulative
distribution. `B rows · V vocabulary`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mull.kernels import library


class Filters(NamedTuple):
    """Of every row: top_k int64 (0 is off), top_p float64 (1 is off), min_p float32 (0 is off)."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor


def pointers(filters: Filters | None) -> dict[str, int]:
    """As the native structs have them."""
    if filters is None:
        return {}
    return {name: part.data_ptr() for name, part in filters._asdict().items()}


def can_draw(logits_BV: Tensor) -> bool:
    """Whether `draw` takes these; else the caller draws with torch."""
    return (
        logits_BV.device.type == "cpu"
        and logits_BV.dtype == torch.float32
        and logits_BV.stride(-1) == 1
        and library.native_available()
    )


def draw(
    logits_BV: Tensor,
    inverse_temperatures: Sequence[float],
    noise: Sequence[float],
    *,
    tell_chances: bool = False,
    logprob_scales: Sequence[float] | None = None,
    filters: Filters | None = None,
) -> tuple[list[int], list[float], list[float]]:
    """(token, chance of the likeliest token, log-probability of the token) of every row; chances
    and log-probabilities only if asked for; a token of -1 where a logit is NaN or infinite. Minus
    infinity forbids a token.

    inverse_temperatures: 0 takes the likeliest token, the first of equal ones. noise: in [0, 1), of
    no meaning there. logprob_scales: log-probabilities are those of softmax(logits * scale). A
    row's result does not depend on the other rows. With filters the tokens that are left are drawn
    from in falling order of probability, without in order of their ids.
    """
    rows, vocabulary = logits_BV.shape
    inverse_B = torch.tensor(inverse_temperatures, dtype=torch.float32)
    noise_B = torch.tensor(noise, dtype=torch.float64)
    tokens_B = torch.empty(rows, dtype=torch.int64)
    chances_B = torch.empty(rows if tell_chances else 0, dtype=torch.float32)
    scales_B = torch.tensor(logprob_scales or [], dtype=torch.float32)
    logprobs_B = torch.empty(len(scales_B), dtype=torch.float32)
    wanted = library.Draw(
        logits=logits_BV.data_ptr(),
        inverse_temperature=inverse_B.data_ptr(),
        noise=noise_B.data_ptr(),
        **pointers(filters),
        tokens=tokens_B.data_ptr(),
        sureness=chances_B.data_ptr() if tell_chances else None,
        logprobs=logprobs_B.data_ptr() if logprob_scales else None,
        logprob_scale=scales_B.data_ptr() if logprob_scales else None,
        rows=rows,
        vocabulary=vocabulary,
        stride=logits_BV.stride(0),
    )
    lib = library.library()
    assert lib is not None
    library.check(lib.mull_draw(ctypes.byref(wanted), library.threads()))
    return tokens_B.tolist(), chances_B.tolist(), logprobs_B.tolist()
