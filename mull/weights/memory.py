"""Does it fit: the memory a model needs, computed from its shape, beside what the machine has.

Nothing is built or read for it, so it answers before a download and before a load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from mull.errors import ModelError, WeightsError
from mull.weights.catalog import CatalogEntry, load_catalog
from mull.weights.order import in_gb

if TYPE_CHECKING:
    import torch

    from mull.model.config import ModelConfig

# What the engine runs, the most exact first. Bytes per value of the two plain ones:
PRECISIONS = ("fp32", "bf16", "q8", "q4")
_PLAIN = {"fp32": 4, "bf16": 2}
# What q4 leaves in 8 bits; vectors (norms, biases) and the router are float32 at q8 and q4.
_EIGHT_BIT = ("embedding", "head", "latent_up")
_EXPERT_UNIT = 32  # an expert's width is padded to a multiple of it, see engine/fused_latent.py
DEFAULT_CONTEXT = 4096
# The interpreter, torch and the activations of one batch: about 0.3 GB measured for a small model.
OVERHEAD_BYTES = 400_000_000
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Fit:
    """Whether a model fits, and a line for people that says so. False in a condition if not."""

    fits: bool
    needed: int
    available: int
    line: str

    def __bool__(self) -> bool:
        return self.fits


def weight_bytes(config: ModelConfig, precision: str = "bf16", *, mtp: bool = False) -> int:
    """Bytes of all weights in memory at one of PRECISIONS, with MTP modules if asked for."""
    _check(precision)
    total = config.parameter_count(mtp=mtp)[0]
    if precision in _PLAIN:
        return total * _PLAIN[precision]
    from mull.kernels.layout import packed_bytes
    from mull.model.matrices import matrices

    quantised = [matrix for matrix in matrices(config, mtp=mtp) if matrix.part != "router"]
    size = 4 * (total - sum(matrix.values for matrix in quantised))
    for matrix in quantised:
        outputs, kind = matrix.outputs, "q8" if matrix.part in _EIGHT_BIT else precision
        if matrix.part == "expert_up":
            outputs = -(-outputs // _EXPERT_UNIT) * _EXPERT_UNIT
        size += matrix.count * packed_bytes(outputs, matrix.inputs, kind)
    return size


def default_cache(precision: str) -> torch.dtype:
    """Of keys and values beside weights at `precision`, unless something else is asked for."""
    import torch

    return torch.float32 if precision == "fp32" else torch.bfloat16


def cache_bytes(
    config: ModelConfig,
    tokens: int,
    precision: str = "bf16",
    *,
    cache: torch.dtype | None = None,
    mtp: bool = False,
) -> int:
    """Bytes the cache takes for so many tokens over all layers.

    cache: what it is kept in; None is the default for weights at `precision`.
    """
    _check(precision)
    # Of several MTP modules the engine uses the first.
    extra = int(mtp and config.has_mtp)
    return tokens * config.cache_bytes_per_token(cache or default_cache(precision), extra)


def needed_bytes(
    config: ModelConfig,
    precision: str = "bf16",
    context: int = DEFAULT_CONTEXT,
    *,
    cache: torch.dtype | None = None,
    mtp: bool = False,
) -> int:
    """Bytes to run: weights, the cache of one context, and the program itself."""
    tokens = min(context, config.max_position_embeddings)
    cached = cache_bytes(config, tokens, precision, cache=cache, mtp=mtp)
    return weight_bytes(config, precision, mtp=mtp) + cached + OVERHEAD_BYTES


def _check(precision: str) -> None:
    if precision not in PRECISIONS:
        raise WeightsError(f"unknown precision {precision!r}: give one of {', '.join(PRECISIONS)}")


def available_memory() -> int:
    """Bytes this process may still take: free on the machine, and within its control group."""
    return min([psutil.virtual_memory().available, *_group_headroom()])


def _group_headroom() -> list[int]:
    """What each control group around this process has left (Linux, version 2 and 1)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    rooms = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, limit, usage = _CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        while group.is_relative_to(root):
            rooms += _headroom(group, limit, usage)
            group = group.parent
    return rooms


def _headroom(group: Path, limit: str, usage: str) -> list[int]:
    try:
        allowed = int((group / limit).read_text())  # "max" where there is no limit
        used = int((group / usage).read_text())
        stat = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return []
    # the kernel gives file pages back when it must: they count as used, but are free for us
    reclaimable = sum(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
    return [max(0, allowed - used + reclaimable)]


def fits(
    config: ModelConfig,
    *,
    precision: str = "bf16",
    context: int = DEFAULT_CONTEXT,
    name: str = "the model",
    available: int | None = None,
    cache: torch.dtype | None = None,
    mtp: bool = False,
) -> Fit:
    """Whether a model of this shape runs here; if not, the line names one that does."""
    have = available_memory() if available is None else available
    need = needed_bytes(config, precision, context, cache=cache, mtp=mtp)
    line = f"{name} needs {in_gb(need)} of memory in {precision}, {in_gb(have)} are free: "
    if need <= have:
        return Fit(True, need, have, line + "fits")
    advice = _advice(config, precision, context, have, cache)
    return Fit(False, need, have, line + "does not fit" + advice)


def word_before_download(shape: Mapping[str, Any], name: str) -> str:
    """What to say before such a model is fetched: whether it fits, or that it will not run."""
    from mull.model.config import ModelConfig
    from mull.weights.precision import auto_precision

    try:
        config = ModelConfig.from_dict(shape)
    except ModelError as error:
        return f"warning: {name} will not run in mull: {error}"
    fit = fits(config, precision=auto_precision(config).precision, name=name)
    return fit.line if fit else f"warning: {fit.line}"


def refuse_unless_fits(
    config: ModelConfig,
    precision: str,
    *,
    name: str,
    cache: torch.dtype | None = None,
    cache_tokens: int | None = None,
    mtp: bool = False,
) -> None:
    """Before a load: raise WeightsError where weights at `precision` and the cache do not fit.

    cache_tokens: what was asked for; None holds a cache of DEFAULT_CONTEXT against the memory.
    """
    have = available_memory()
    fit = fits(config, precision=precision, name=name, available=have, cache=cache, mtp=mtp)
    if not fit:
        raise WeightsError(fit.line)
    if cache_tokens is None:
        return
    each = cache_bytes(config, 1, precision, cache=cache, mtp=mtp)
    room = have - needed_bytes(config, precision, 0, mtp=mtp)
    if cache_tokens * each > room:
        raise WeightsError(
            f"a cache of {cache_tokens:,} tokens of {name} needs {in_gb(cache_tokens * each)} of "
            f"memory, {in_gb(room)} are left beside its weights: "
            f"give at most {max(0, room // each):,}"
        )


def largest_context(config: ModelConfig, precision: str, available: int | None = None) -> int:
    """How many tokens of cache fit beside the weights, at most the model's own context."""
    have = available_memory() if available is None else available
    room = have - needed_bytes(config, precision, 0)
    return max(0, min(room // cache_bytes(config, 1, precision), config.max_position_embeddings))


def _advice(
    config: ModelConfig, precision: str, context: int, have: int, cache: torch.dtype | None
) -> str:
    for smaller in PRECISIONS[PRECISIONS.index(precision) + 1 :]:
        if needed_bytes(config, smaller, context, cache=cache) <= have:
            return f"; with --precision {smaller} it does"
    entry = largest_that_fits(context=context, available=have)
    if entry is None:
        return ", nor does any model of the catalogue"
    return f"; {entry.name} ({in_gb(entry.download_bytes or 0)} to pull) does"


def largest_that_fits(
    *, precision: str = "q4", context: int = DEFAULT_CONTEXT, available: int | None = None
) -> CatalogEntry | None:
    """The largest model of the catalogue that runs here, or None."""
    from mull.model.config import ModelConfig

    have = available_memory() if available is None else available
    running = [
        entry
        for entry in load_catalog().values()
        if entry.config
        and needed_bytes(ModelConfig.from_dict(entry.config), precision, context) <= have
    ]
    return max(running, key=lambda entry: entry.parameters_total or 0, default=None)
