"""The rotary part of config.json, read from its two spellings into one normal form.

Old: `rope_theta` beside `rope_scaling` (whose type may be called `type`). transformers 5: one
`rope_parameters` object. Normal form: theta, and None (plain RoPE) or a dict with `rope_type`.
"""

import math
from collections.abc import Mapping
from typing import Any

from mull.errors import ModelError
from mull.model.fields import Fields

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_MAX_FACTOR = 1e6


def read_rope(fields: Fields, max_position_embeddings: int) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling); scaling is None or a normal form made below. Raises ModelError."""
    found = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(found, Mapping):
        raise fields.fail("rope_scaling", found, "an object or null")
    if any(isinstance(value, Mapping) for value in found.values()):
        raise ModelError(
            "config.json: rope_parameters differ by layer type; mull knows one for all layers, "
            "give a flat object"
        )
    scaling = Fields(found, {}, where="config.json, rope_scaling")
    theta_source = scaling if scaling.has("rope_theta") else fields
    # log(theta) divides in YaRN, so theta = 1 is out.
    theta = theta_source.number("rope_theta", 1.001, 1e15, default=10000.0)
    partial_source = scaling if scaling.has("partial_rotary_factor") else fields
    if partial_source.number("partial_rotary_factor", 0.0, 1.0, default=1.0) != 1.0:
        raise ModelError(
            "config.json: partial_rotary_factor is not 1; mull rotates whole heads only, "
            "use a model of another kind"
        )
    name = "rope_type" if scaling.has("rope_type") else "type"
    rope_type = scaling.choice(name, ROPE_TYPES, default="default")
    return theta, _READERS[rope_type](scaling, max_position_embeddings)


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """0.1 * weight * ln(factor) + 1 (YaRN, section 3.4)."""
    return 0.1 * weight * math.log(factor) + 1.0


def yarn_amplitude(normal: Mapping[str, Any]) -> float:
    """What YaRN multiplies cos and sin by, of a normal form."""
    if "attention_factor" in normal:
        return normal["attention_factor"]
    factor, mscale, all_dim = normal["factor"], normal.get("mscale"), normal.get("mscale_all_dim")
    if mscale and all_dim:
        return yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    return yarn_mscale(factor)


def _read_default(scaling: Fields, max_position_embeddings: int) -> None:
    return None


def _read_linear(scaling: Fields, max_position_embeddings: int) -> dict[str, Any]:
    return {"rope_type": "linear", "factor": scaling.number("factor", 1.0, _MAX_FACTOR)}


def _read_llama3(scaling: Fields, max_position_embeddings: int) -> dict[str, Any]:
    low = scaling.number("low_freq_factor", 1e-3, 1e6)
    high = scaling.number("high_freq_factor", 1e-3, 1e6)
    if high <= low:
        raise scaling.fail("high_freq_factor", high, f"above low_freq_factor, {low:g}")
    return {
        "rope_type": "llama3",
        "factor": scaling.number("factor", 1.0, _MAX_FACTOR),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": scaling.integer(
            "original_max_position_embeddings", 1, 2**31, default=max_position_embeddings
        ),
    }


def _read_yarn(scaling: Fields, max_position_embeddings: int) -> dict[str, Any]:
    original = scaling.integer(
        "original_max_position_embeddings", 1, 2**31, default=max_position_embeddings
    )
    # Without a factor, YaRN stretches the original context to the stated one.
    stretch = max(1.0, max_position_embeddings / original)
    normal: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": scaling.number("factor", 1.0, _MAX_FACTOR, default=stretch),
        "original_max_position_embeddings": original,
        "beta_fast": scaling.number("beta_fast", 1e-3, 1e6, default=32.0),
        "beta_slow": scaling.number("beta_slow", 1e-3, 1e6, default=1.0),
        "truncate": scaling.boolean("truncate", default=True),
    }
    for name in ("mscale", "mscale_all_dim", "attention_factor", "attn_factor"):
        if scaling.has(name):
            normal[name] = scaling.number(name, 0.0, 1e3)
    if "attn_factor" in normal and "attention_factor" not in normal:
        # DeepSeek-R1-0528-Qwen3-8B: vLLM multiplies YaRN's own factor by it (giving 1 for that
        # model), transformers overlooks it. Written under both names, they agree.
        normal["attention_factor"] = yarn_amplitude(normal) * normal["attn_factor"]
    return normal


_READERS = {
    "default": _read_default,
    "linear": _read_linear,
    "llama3": _read_llama3,
    "yarn": _read_yarn,
}
