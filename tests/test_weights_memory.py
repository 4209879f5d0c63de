"""Does it fit: bytes by arithmetic, and the line that says so."""

from pathlib import Path

import pytest
import torch

import mull
from mull import kernels, weights
from mull.engine import prepare
from mull.errors import WeightsError
from mull.model.config import ModelConfig
from mull.weights import memory
from mull.weights.catalog import HubSource, WheelSource
from mull.weights.packed import own_tensors
from mull.weights.precision import auto_precision

CATALOG = weights.load_catalog()


def config_of(name: str) -> ModelConfig:
    return ModelConfig.from_dict(CATALOG[name].config)


def test_the_catalogue_holds_the_models_the_issue_names() -> None:
    assert set(CATALOG) == {
        "smollm2-135m",
        "deepseek-r1",
        "deepseek-r1-distill-qwen-1.5b",
        "deepseek-r1-distill-qwen-7b",
        "deepseek-r1-distill-qwen-14b",
        "deepseek-r1-distill-qwen-32b",
        "deepseek-r1-distill-llama-8b",
        "deepseek-r1-distill-llama-70b",
        "deepseek-r1-0528-qwen3-8b",
        "deepseek-v3",
        "deepseek-v2-lite-chat",
        "deepseek-v3-base",
        "qwen2.5-math-1.5b",
    }


@pytest.mark.parametrize("name", CATALOG)
def test_a_catalogue_entry_agrees_with_its_own_shape(name: str) -> None:
    entry = CATALOG[name]
    counted = config_of(name).parameter_count()
    assert counted == (entry.parameters_total, entry.parameters_active)
    assert entry.licence
    assert entry.context is not None
    assert entry.context <= config_of(name).max_position_embeddings
    if isinstance(entry.source, HubSource):
        assert entry.source.revision is None  # resolved at the first pull, never written here


def test_the_shapes_match_the_published_sizes() -> None:
    # DeepSeek-V3 report: 671B and 37B; the hub's listing of the 7B distillation: 8.61 + 6.62 GB
    total, active = config_of("deepseek-v3").parameter_count()
    assert (round(total / 1e9), round(active / 1e9)) in {(671, 37), (671, 38)}
    assert memory.weight_bytes(config_of("deepseek-r1-distill-qwen-7b")) / 1e9 == pytest.approx(
        8.61 + 6.62, abs=0.01
    )


def test_the_cache_of_v3_takes_70272_bytes_a_token() -> None:
    assert memory.cache_bytes(config_of("deepseek-v3"), 1) == 70_272
    assert weights.describe("deepseek-v3")["cache_bytes_per_token"] == 70_272


def test_needed_bytes_are_weights_cache_and_overhead() -> None:
    config = config_of("smollm2-135m")
    # 30 layers, keys and values, 3 heads of 64: 11,520 values a token
    assert memory.cache_bytes(config, 100, "fp32") == 100 * 11_520 * 4
    assert memory.needed_bytes(config, "fp32", 100) == (
        134_515_008 * 4 + 100 * 11_520 * 4 + memory.OVERHEAD_BYTES
    )
    assert memory.needed_bytes(config, "bf16", 10**9) == memory.needed_bytes(config, "bf16", 8192)
    with pytest.raises(WeightsError, match="unknown precision"):
        memory.weight_bytes(config, "fp12")


def test_what_does_not_fit_is_told_with_what_does() -> None:
    fit = memory.fits(config_of("deepseek-r1"), name="deepseek-r1", available=23_400_000_000)
    assert not fit
    assert fit.line == (
        "deepseek-r1 needs 1.3 TB of memory in bf16, 23.4 GB are free: does not fit; "
        "deepseek-r1-distill-qwen-32b (65.5 GB to pull) does"
    )
    small = memory.fits(config_of("deepseek-r1"), name="deepseek-r1", available=5_000_000_000)
    assert small.line.endswith("deepseek-r1-distill-qwen-1.5b (3.6 GB to pull) does")
    seven = config_of("deepseek-r1-distill-qwen-7b")
    assert memory.fits(seven, precision="fp32", available=20 * 10**9).line.endswith(
        "with --precision bf16 it does"
    )
    none = memory.fits(seven, available=1000)
    assert none.line.endswith("nor does any model of the catalogue")
    assert memory.fits(seven, available=20 * 10**9)


def test_loading_what_cannot_fit_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"deepseek-r1 needs 1\.3 TB"):
        weights.refuse_unless_fits(config_of("deepseek-r1"), "bf16", name="deepseek-r1")
    weights.refuse_unless_fits(config_of("smollm2-135m"), "fp32", name="smollm2-135m")


@pytest.mark.parametrize("precision", ["q8", "q4"])
@pytest.mark.parametrize("name", CATALOG)
def test_quantised_weights_take_exactly_the_bytes_that_arithmetic_says(
    name: str, precision: str
) -> None:
    if not kernels.native_available():
        pytest.skip("without native kernels nothing is packed")
    config = config_of(name)
    model = weights.empty_model(config, dtype=torch.float32)
    skeleton = prepare(model, precision=precision, device=torch.device("cpu"))
    held = sum(tensor.nbytes for tensor in own_tensors(skeleton).values())
    assert memory.weight_bytes(config, precision) == held


def test_modules_of_multi_token_prediction_are_counted_where_they_are_loaded() -> None:
    config = config_of("deepseek-v3")
    module = config.parameter_count(mtp=True)[0] - config.parameter_count()[0]
    # README_WEIGHTS.md of DeepSeek-V3: 11.5B parameters of its own; embedding and head are shared.
    assert module / 1e9 == pytest.approx(11.5, abs=0.15)
    layer = memory.cache_bytes(config, 1000, mtp=True) - memory.cache_bytes(config, 1000)
    assert layer == 1000 * 576 * 2
    assert memory.needed_bytes(config, "bf16", 1000, mtp=True) == (
        memory.needed_bytes(config, "bf16", 1000) + 2 * module + layer
    )
    plain = config_of("smollm2-135m")
    assert memory.needed_bytes(plain, "q8", mtp=True) == memory.needed_bytes(plain, "q8")


@pytest.mark.parametrize("precision", ["q8", "q4"])
def test_quantised_modules_of_multi_token_prediction_take_what_arithmetic_says(
    precision: str,
) -> None:
    if not kernels.native_available():
        pytest.skip("without native kernels nothing is packed")
    config = config_of("deepseek-v3")
    model = weights.empty_model(config, dtype=torch.float32, mtp=True)
    skeleton = prepare(model, precision=precision, device=torch.device("cpu"))
    held = sum(tensor.nbytes for tensor in own_tensors(skeleton).values())
    assert memory.weight_bytes(config, precision, mtp=True) == held


def test_a_cache_that_was_asked_for_is_held_against_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of("smollm2-135m")
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
    weights.refuse_unless_fits(config, "q8", name="m", cache_tokens=10_000)
    with pytest.raises(
        WeightsError, match=r"a cache of 50,000 tokens of m needs 1\.2 GB"
    ) as caught:
        weights.refuse_unless_fits(config, "q8", name="m", cache_tokens=50_000)
    fitting = int(str(caught.value).rsplit(" ", 1)[1].replace(",", ""))
    weights.refuse_unless_fits(config, "q8", name="m", cache_tokens=fitting)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "q8"])
def test_the_cache_counts_in_what_it_is_kept_in(
    dtype: torch.dtype, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("smollm2-135m")
    each = config.cache_bytes_per_token(dtype)
    bare = memory.needed_bytes(config, precision, 0)
    assert memory.needed_bytes(config, precision, 1000, cache=dtype) == bare + 1000 * each
    monkeypatch.setattr(memory, "available_memory", lambda: bare + 10_000 * each)
    asked = {"name": "m", "cache": dtype}
    weights.refuse_unless_fits(config, precision, cache_tokens=10_000, **asked)
    with pytest.raises(WeightsError, match="give at most 10,000"):
        weights.refuse_unless_fits(config, precision, cache_tokens=10_001, **asked)


def test_a_load_counts_the_cache_in_what_it_is_kept_in(
    smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("smollm2-135m")
    room = 8192 * config.cache_bytes_per_token(torch.bfloat16)
    have = memory.needed_bytes(config, "fp32", 0) + room
    monkeypatch.setattr(memory, "available_memory", lambda: have)
    asked = {"precision": "fp32", "cache_tokens": 8192}
    with pytest.raises(WeightsError, match="give at most 4,096"):
        mull.load(str(smollm2_gguf), **asked)
    mull.load(str(smollm2_gguf), cache="bf16", **asked).close()


def test_auto_is_the_fastest_that_loses_little_and_fits() -> None:
    config = config_of("deepseek-r1-distill-qwen-7b")
    room = 40 * 10**9
    assert auto_precision(config, available=room).precision == "q8"
    assert auto_precision(config, available=7 * 10**9).precision == "q4"
    assert auto_precision(config, is_four_bit=True, available=room).precision == "q4"
    small = config_of("smollm2-135m")
    assert auto_precision(small, is_four_bit=True, available=room).precision == "bf16"
    assert auto_precision(small, available=600 * 10**6).precision == "q4"
    assert auto_precision(config, native=False, available=room).precision == "fp32"
    assert auto_precision(config, on_cpu=False, native=False, available=room).precision == "bf16"


def test_the_largest_context_just_fits() -> None:
    config = config_of("deepseek-r1-distill-qwen-1.5b")
    have = 5 * 10**9
    tokens = memory.largest_context(config, "bf16", have)
    assert 0 < tokens < config.max_position_embeddings
    assert memory.needed_bytes(config, "bf16", tokens) <= have
    assert memory.needed_bytes(config, "bf16", tokens + 1) > have
    assert memory.largest_context(config, "bf16", 10**9) == 0


def test_a_control_groups_limit_counts_and_its_file_pages_are_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 250\n")
    assert memory._headroom(tmp_path, "memory.max", "memory.current") == [550]
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._headroom(tmp_path, "memory.max", "memory.current") == []
    assert memory.available_memory() > 0


def test_a_pulled_model_is_described_from_its_files(smollm2_gguf: Path) -> None:
    facts = weights.describe("smollm2-135m")
    assert facts["architecture"] == "llama"
    assert facts["parameters"] == 134_515_008
    assert facts["stored_as"].startswith("Q4_1")
    assert facts["cache_bytes_per_token"] == 23_040
    assert facts["bytes"] == smollm2_gguf.stat().st_size
    assert (facts["licence"], facts["context"]) == ("apache-2.0", 8192)
    entry = CATALOG["smollm2-135m"]
    assert isinstance(entry.source, WheelSource)
    assert [item["sha256"] for item in facts["files"]] == [entry.source.sha256]
    assert [item["precision"] for item in facts["fits"]] == ["fp32", "bf16", "q8", "q4"]
    assert facts["auto"]["precision"] in ("bf16", "fp32")
    loose = weights.describe(str(smollm2_gguf))
    assert (loose["pulled"], loose["licence"]) == (False, "apache-2.0")
