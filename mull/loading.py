"""From a model's files to what the engine runs: packed once, mapped or read from then on.

The first start packs the weights as it reads them and keeps the result in
a file beside the model; a second start lays out the skeleton and fills it from that file, without
opening the weights it was made of.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from mull import kernels, weights
from mull.engine import bind, choose_mode, prepare
from mull.engine.prepare import PRECISIONS, QUANTISED, is_packed
from mull.errors import RequestError, WeightsError
from mull.model.transformer import CausalLM
from mull.weights.memory import default_cache

Progress = Callable[[int, int], None]
# The largest file of bf16 weights: quantising takes long, packing hardly longer than reading.
_MOST_BF16 = 2 * 10**9
_CACHES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def check_options(
    *,
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    cache: str = "auto",
    cache_tokens: int | None = None,
) -> torch.device:
    """The device to run on; RequestError for what no model could be loaded with."""
    if threads is not None and not is_count(threads, 1024):
        raise RequestError(f"threads is {threads!r}, but must be a whole number from 1 to 1024")
    if cache_tokens is not None and not is_count(cache_tokens, 2**31 - 1):
        raise RequestError(f"cache_tokens is {cache_tokens!r}, but must be a whole number from 1")
    _check_word("precision", precision, ("auto", *PRECISIONS))
    _check_word("cache", cache, ("auto", *_CACHES))
    _check_word("device", device, ("auto", "cpu", "cuda"))
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise RequestError(
            "device is cuda, but this torch sees no CUDA device: "
            "use cpu, or install a CUDA build of torch"
        )
    chosen = torch.device("cuda" if has_cuda and device != "cpu" else "cpu")
    if precision in QUANTISED and chosen.type != "cpu":
        raise RequestError(
            f"precision {precision} runs on the CPU only: add device cpu, or use bf16"
        )
    return chosen


def is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _check_word(name: str, value: object, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        listed = f"{', '.join(known[:-1])} or {known[-1]}"
        raise RequestError(f"{name} is {value!r}, but must be {listed}")


def wants_mtp(
    speculation: str,
    opened: weights.OpenedModel,
    *,
    precision: str,
    device: torch.device,
    cache: str = "auto",
    cache_tokens: int | None = None,
    ignore_memory: bool = False,
) -> bool:
    """Whether to load the modules of multi-token prediction: where they are asked for, and by auto
    where the model has them and memory holds them as well.

    Raises RequestError where they are asked for and the model has none.
    """
    if choose_mode(speculation, has_mtp=True) != "mtp":
        return False
    name = opened.files.name
    mode = choose_mode(speculation, has_mtp=weights.holds_mtp(opened), name=name)
    if mode != "mtp" or speculation == "mtp" or ignore_memory or device.type != "cpu":
        return mode == "mtp"
    try:
        weights.refuse_unless_fits(
            opened.config,
            precision_held(precision),
            name=name,
            cache=cache_dtype(cache, precision),
            cache_tokens=cache_tokens,
            mtp=True,
        )
    except WeightsError:
        return False
    return True


def choose_precision(precision: str, opened: weights.OpenedModel, device: torch.device) -> str:
    """What was asked for, or what auto means here."""
    if precision != "auto":
        return precision
    choice = weights.auto_precision(
        opened.config,
        is_four_bit=opened.is_four_bit,
        on_cpu=device.type == "cpu",
        native=kernels.native_available(),
    )
    return choice.precision


def precision_held(precision: str) -> str:
    """The precision whose memory the weights take: without native kernels q8 and q4 are unpacked
    to float32 numbers."""
    return "fp32" if precision in QUANTISED and not kernels.native_available() else precision


def cache_dtype(cache: str, precision: str) -> torch.dtype:
    """Of keys and values: bf16, but for weights in float32, unless something else was asked for."""
    return _CACHES.get(cache, default_cache(precision))


def load_prepared(
    opened: weights.OpenedModel,
    *,
    precision: str,
    device: torch.device,
    progress: Progress | None = None,
    mtp: bool = False,
) -> CausalLM:
    """The model in `precision` on `device`, ready to run. progress: of reading the weights.

    Memory peaks at the packed model and the largest module of the original.
    """
    if not is_packed(precision, device):
        dtype = PRECISIONS[precision]
        model = weights.load_model(opened, dtype=dtype, device=device, progress=progress, mtp=mtp)
        return prepare(model, precision=precision, device=device)
    if not _is_kept(opened, precision, mtp):
        return _packed(opened, precision, progress, mtp)
    kept = weights.PackedFile(opened.files, precision + ("-mtp" if mtp else ""))
    model_or_none = _from_file(opened, kept, precision, mtp)
    if model_or_none is not None:
        return model_or_none
    model = _packed(opened, precision, progress, mtp)
    if not kept.write(model):
        return model
    # The file's tensors lie together in huge pages, or in memory that processes share.
    del model
    return _from_file(opened, kept, precision, mtp) or _packed(opened, precision, progress, mtp)


def _is_kept(opened: weights.OpenedModel, precision: str, mtp: bool) -> bool:
    """Whether packed weights are worth a file: quantised ones, and bf16 of a small model."""
    if not kernels.native_available() or precision == "fp32":
        return False
    size = weights.weight_bytes(opened.config, precision, mtp=mtp)
    return precision in QUANTISED or size < _MOST_BF16


def _from_file(
    opened: weights.OpenedModel, kept: weights.PackedFile, precision: str, mtp: bool
) -> CausalLM | None:
    if not kept.exists():
        return None
    model = weights.empty_model(opened.config, dtype=_source_dtype(precision), mtp=mtp)
    skeleton = prepare(model, precision=precision, device=torch.device("cpu"))
    if not kept.fill(skeleton):
        return None
    bind(skeleton)
    return skeleton


def _packed(
    opened: weights.OpenedModel, precision: str, progress: Progress | None, mtp: bool
) -> CausalLM:
    """Module by module: read, packed, and the original let go."""
    model, fill = weights.lay_out(
        opened, dtype=_source_dtype(precision), progress=progress, mtp=mtp
    )
    return prepare(model, precision=precision, device=torch.device("cpu"), fill=fill)


def _source_dtype(precision: str) -> torch.dtype:
    # Rounded to bfloat16 on the way, every weight would lose half a step of 8 bits.
    return torch.float32 if precision in QUANTISED else PRECISIONS[precision]


def give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps what small allocations hemmed in."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
