"""Rotary positions: inverse frequencies of the four kinds, and the rotation itself.

Sources: RoPE arXiv 2104.09864; linear scaling arXiv 2306.15595; YaRN arXiv 2309.00071, section 3;
llama3 as in Meta's llama-models (`apply_scaling`). transformers is the oracle in the tests.

T tokens (packed) · H heads · r rotated width of a head
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mull.model.config import ModelConfig
from mull.model.rope_config import yarn_amplitude, yarn_mscale

# Tables start with this many positions and double.
_FIRST_POSITIONS = 2048


class Rope:
    """cos and sin for any positions of one model; holds no parameters, only r/2 frequencies, and on
    the CPU, where trigonometry takes longer than a look-up, a table that grows up to the context.

    Not an nn.Module on purpose: the frequencies must be real numbers even while a model is being
    built on the meta device, and float32 even in a bfloat16 model.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._frequencies = inverse_frequencies(
            config.rope_dim, config.rope_theta, config.rope_scaling
        )
        scaling = config.rope_scaling
        is_yarn = scaling is not None and scaling["rope_type"] == "yarn"
        self._amplitude = yarn_amplitude(scaling) if scaling and is_yarn else 1.0
        self._on_device = {torch.device("cpu"): self._frequencies}
        self._context = config.max_position_embeddings
        self._table_2Pr = (self._frequencies[:0, None],) * 2

    def __call__(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [T, r/2], multiplied by YaRN's attention factor."""
        cos_Pr, sin_Pr, rows_T = self.table(positions_T)
        if rows_T is None:
            return cos_Pr, sin_Pr
        return cos_Pr.index_select(0, rows_T), sin_Pr.index_select(0, rows_T)

    def table(self, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(cos, sin, rows_T): rows_T[i] is the row for position i; None: row i itself."""
        device = positions_T.device
        if device not in self._on_device:
            self._on_device[device] = self._frequencies.to(device)
        if device.type != "cpu" or not positions_T.numel():
            return *self._turned(positions_T), None
        highest = int(positions_T.numpy().max())  # of few numbers: faster than torch's
        whole = self.whole_table(highest)
        return (*self._turned(positions_T), None) if whole is None else (*whole, positions_T)

    def whole_table(self, highest: int) -> tuple[Tensor, Tensor] | None:
        """(cos, sin) on the CPU, row p for position p, up to `highest` at least; None where that is
        beyond the context."""
        if highest >= self._context:
            return None
        table = self._table_2Pr
        if highest >= len(table[0]):
            table = self._table_2Pr = self._grown(highest + 1)
        return table  # another thread may have put a shorter one there meanwhile

    def _turned(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        angles_Tr = positions_T.float()[:, None] * self._on_device[positions_T.device]
        return angles_Tr.cos() * self._amplitude, angles_Tr.sin() * self._amplitude

    def _grown(self, needed: int) -> tuple[Tensor, Tensor]:
        size = _FIRST_POSITIONS
        while size < needed:
            size *= 2
        # A tensor made in inference mode could not be used in training.
        with torch.inference_mode(False):
            positions_P = torch.arange(min(size, self._context), device="cpu")
            return self._turned(positions_P)


def rotate(x_THr: Tensor, cos_sin: tuple[Tensor, Tensor], *, interleaved: bool) -> Tensor:
    """Rotates pairs of a head by its token's angles.

    Pairs are (i, i + r/2); with `interleaved` (DeepSeek's checkpoints) they are (2i, 2i + 1) on the
    way in. Either way the result is laid out in halves: scores do not depend on a common order of
    query and key.
    """
    cos_T1r, sin_T1r = (part[:, None].to(x_THr.dtype) for part in cos_sin)
    if interleaved:
        first, second = x_THr[..., 0::2], x_THr[..., 1::2]
    else:
        first, second = x_THr.chunk(2, dim=-1)
    return torch.cat(
        (first * cos_T1r - second * sin_T1r, second * cos_T1r + first * sin_T1r), dim=-1
    )


def inverse_frequencies(width: int, theta: float, scaling: dict[str, Any] | None) -> Tensor:
    """float32 [width / 2] on the CPU, for a normalised `rope_scaling` (None: plain RoPE)."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    plain = 1.0 / theta**exponents
    if scaling is None:
        return plain
    return _SCALINGS[scaling["rope_type"]](plain, width, theta, scaling)


def latent_softmax_scale(config: ModelConfig) -> float:
    """MLA's softmax scale: 1/sqrt(query width), times mscale^2 where `mscale_all_dim` is given.

    Leaving the factor out agrees at position 0 and drifts later.
    """
    scale = config.qk_head_dim**-0.5
    scaling = config.rope_scaling
    weight = scaling.get("mscale_all_dim") if scaling else None
    if scaling is None or not weight:
        return scale
    return scale * yarn_mscale(scaling["factor"], weight) ** 2


def _linear(plain: Tensor, width: int, theta: float, scaling: dict[str, Any]) -> Tensor:
    return plain / scaling["factor"]


def _llama3(plain: Tensor, width: int, theta: float, scaling: dict[str, Any]) -> Tensor:
    """Slow pairs are stretched by the factor, fast ones kept, those between blended."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / scaling["factor"] + kept * plain


def _yarn(plain: Tensor, width: int, theta: float, scaling: dict[str, Any]) -> Tensor:
    """Keeps pairs turning over beta_fast times in the original context, stretches slow ones."""

    def pair_turning(turns: float) -> float:
        ratio = scaling["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return width * math.log(ratio) / (2 * math.log(theta))

    low, high = pair_turning(scaling["beta_fast"]), pair_turning(scaling["beta_slow"])
    if scaling["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001  # the ramp becomes a step, without dividing by zero
    pairs = torch.arange(width // 2, dtype=torch.float32, device="cpu")
    kept = 1 - ((pairs - low) / (high - low)).clamp(0, 1)
    return plain / scaling["factor"] * (1 - kept) + plain * kept


_SCALINGS: dict[str, Callable[[Tensor, int, float, dict[str, Any]], Tensor]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
