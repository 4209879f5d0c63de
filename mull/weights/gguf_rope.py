"""RoPE scaling out of GGUF metadata and, for llama3's, out of the table that llama.cpp keeps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mull.errors import WeightsError
from mull.model.rope_config import yarn_mscale
from mull.weights.gguf_file import GgufFile
from mull.weights.gguf_metadata import Metadata, shortest

LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_CONTEXT = 1.0, 4.0, 8192
# mull writes these as `{architecture}.rope.llama3.*`; other files keep only the table rope_freqs.
LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def rope_scaling(meta: Metadata, config: dict[str, Any]) -> dict[str, Any] | None:
    factor = meta.number("rope.scaling.factor", meta.number("rope.scale_linear", 0.0))
    # llama.cpp takes a factor without a type as linear.
    kind = meta.text("rope.scaling.type", "linear")
    if kind == "none" or factor in (0.0, 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise meta.wrong("rope.scaling.type", "none, linear or yarn")
    context = meta.integer(
        "rope.scaling.original_context_length", config["max_position_embeddings"], low=1
    )
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": context,
        "beta_fast": meta.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": meta.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    if meta.has("rope.scaling.attn_factor") and factor > 0:
        # llama.cpp multiplies YaRN's own magnitude by this key.
        own = 0.1 * math.log(factor) + 1.0
        share = meta.number("rope.scaling.attn_factor")
        scaling["attention_factor"] = _six_digits(own * share)
    return scaling


def latent_rope_scaling(meta: Metadata, config: dict[str, Any]) -> dict[str, Any] | None:
    """YaRN with DeepSeek's two magnitudes; `gguf_export_config` has the arithmetic."""
    scaling = rope_scaling(meta, config)
    if scaling is None or not meta.has("rope.scaling.yarn_log_multiplier"):
        return scaling
    if scaling["factor"] < 1.0:
        raise meta.wrong("rope.scaling.factor", "1 or more")
    # Stored is a tenth of the multiplier.
    weight = shortest(meta.number("rope.scaling.yarn_log_multiplier") / 0.1)
    if not meta.has("rope.scaling.attn_factor"):
        # The two mscales are equal in every DeepSeek model.
        return scaling | {"mscale": weight, "mscale_all_dim": weight}
    amplitude = shortest(meta.number("rope.scaling.attn_factor"))
    whole = amplitude * yarn_mscale(scaling["factor"], weight)
    all_dim = _six_digits((whole - 1.0) / (0.1 * math.log(scaling["factor"])))
    scaling["attention_factor"] = amplitude
    return scaling | ({"mscale_all_dim": all_dim} if abs(all_dim) > 1e-5 else {})


def llama3_scaling(
    file: GgufFile, meta: Metadata, theta: float, head_dim: int
) -> dict[str, Any] | None:
    """The llama3 rope scaling that gives the factors in rope_freqs.weight.

    Most files keep only the factor of each frequency. All but the boundaries of the ramp can be
    read off; Llama 3.1 to 3.3 share those, others follow from two frequencies inside the ramp.
    """
    tensor = file.tensors["rope_freqs.weight"]
    if tensor.shape != (head_dim // 2,) or not theta > 0:
        raise WeightsError(
            f"{file.path}: rope_freqs.weight has the shape {tensor.shape}, not ({head_dim // 2},)"
        )
    factors = file.rows(tensor, 0, 1)[0].astype(np.float64)
    turns = theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)  # per token
    if not np.all(np.isfinite(factors)) or factors.min() < 1.0 - 1e-6:
        raise WeightsError(f"{file.path}: rope_freqs.weight holds factors below 1; it is damaged")
    factor = shortest(factors.max())
    if factor == 1.0:
        return None
    for stretch, low, high, context in [
        *_recorded_ramp(meta),
        (factor, LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_CONTEXT),
        *_fitted_ramps(factors, turns, factor),
    ]:
        if np.allclose(_llama3_factors(turns, stretch, low, high, context), factors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": stretch,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise WeightsError(
        f"{file.path}: rope_freqs.weight is not llama3 scaling, the only kind mull has"
    )


def _llama3_factors(
    turns: np.ndarray, factor: float, low: float, high: float, context: int
) -> np.ndarray:
    ramp = np.clip((context * turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - ramp) / factor + ramp)


def _recorded_ramp(meta: Metadata) -> list[tuple[float, float, float, int]]:
    """What mull wrote beside the tensor; where it does not give the factors, it is passed over."""
    names = [f"rope.llama3.{key}" for key in LLAMA3_KEYS]
    if not all(meta.has(name) for name in names):
        return []
    factor, low, high = (meta.number(name) for name in names[:3])
    if not factor >= 1.0 or not 0.0 < low < high:
        return []
    return [(factor, low, high, meta.integer(names[3], low=1))]


def _fitted_ramps(
    factors: np.ndarray, turns: np.ndarray, factor: float
) -> list[tuple[float, float, float, int]]:
    """The ramp is a line in turns per token: two points inside it give its ends (with low = 1)."""
    ramp = (1.0 / factors - 1.0 / factor) / (1.0 - 1.0 / factor)
    inside = np.flatnonzero((ramp > 1e-3) & (ramp < 1.0 - 1e-3))
    if len(inside) < 2:
        return []
    first, last = inside[0], inside[-1]
    slope = (ramp[first] - ramp[last]) / (turns[first] - turns[last])
    zero = turns[first] - ramp[first] / slope
    if not slope > 0 or not zero > 0:
        return []
    context = max(1, round(1.0 / zero))
    return [(factor, 1.0, shortest(1.0 + context / slope), context)]


def _six_digits(value: float) -> float:
    """Undoes the rounding of float32 factors that were multiplied."""
    return float(f"{value:.6g}")
