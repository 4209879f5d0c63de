"""`mull bench` and `mull doctor`: the shape of what they say, and their arithmetic."""

import json
from pathlib import Path

import pytest
import torch
from wire_server import plain_model

from mull.cli import main
from mull.cli.doctor import find_problems
from mull.cli.speed import Work
from mull.kernels import peaks
from mull.weights import load_catalog

PEAKS = peaks.Peaks(30.0, 100.0, 100.0, 400.0, threads=2)
REPORT = {
    "store": "store",
    "store_writable": True,
    "store_free_bytes": 50e9,
    "kernels": {"native": True},
    "threads": 2,
    "cpus_allowed": 2.0,
    "memory_available_bytes": 8e9,
    "models": ["smollm2-135m"],
}


def test_bench_json_is_the_promised_list(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(plain_model(tmp_path)), "--rounds", "1", "--json"]) == 0
    results = json.loads(capfd.readouterr().out)
    assert [(result["metric"], result["batch"]) for result in results] == [
        ("prefill", 512),
        *(("decode", batch) for batch in (1, 4, 8, 16, 32)),
    ]
    keys = {"metric", "batch", "tokens_per_s", "gb_per_s", "gop_per_s", "precision"}
    for result in results:
        assert set(result) == keys
        assert result["tokens_per_s"] > 0
        assert result["gb_per_s"] > 0
        assert result["gop_per_s"] > 0


def test_the_work_of_a_token_is_two_operations_per_weight(smollm2_gguf: Path) -> None:
    from mull.model.config import ModelConfig

    config = ModelConfig.from_dict(load_catalog()["smollm2-135m"].config)
    work = Work(config, 2, config.cache_bytes_per_token(torch.bfloat16))
    weights = config.parameter_count()[0]  # tied: the embedding is the head
    assert work.decode_ops(1) == 2 * weights
    assert work.step_bytes(1, 0) == 2 * weights
    assert work.step_bytes(4, 100) == 2 * weights + 4 * 100 * 23_040
    head = config.vocab_size * config.hidden_size
    assert work.prefill_ops(512) == 2 * (512 * (weights - head) + head)


def test_a_batch_touches_more_experts_than_one_token_but_never_more_than_all() -> None:
    from mull.model.config import ModelConfig

    config = ModelConfig.from_dict(load_catalog()["deepseek-v3"].config)
    work = Work(config, 1, 0)
    total, active = config.parameter_count()
    embedding = config.vocab_size * config.hidden_size
    assert work.step_bytes(1, 0) == pytest.approx(active - embedding)
    assert work.step_bytes(1, 0) < work.step_bytes(8, 0) < work.step_bytes(100_000, 0)
    assert work.step_bytes(100_000, 0) == pytest.approx(total - embedding)


def test_a_model_that_always_uses_all_its_experts_reads_them_all() -> None:
    from mull.model.config import ModelConfig

    shape = load_catalog()["deepseek-v2-lite-chat"].config | {"num_experts_per_tok": 64}
    config = ModelConfig.from_dict(shape)
    total, active = config.parameter_count()
    assert total == active
    embedding = config.vocab_size * config.hidden_size
    assert Work(config, 1, 0).step_bytes(1, 0) == total - embedding


def test_shares_are_of_the_peak_of_the_products_in_use() -> None:
    assert PEAKS.of_products("q4") == PEAKS.of_products("q8") == ("int8", 400.0)
    assert PEAKS.of_products("fp32") == PEAKS.of_products("bf16") == ("fp32", 100.0)
    with_bf16 = peaks.Peaks(30.0, 100.0, 180.0, 400.0, threads=2)
    assert with_bf16.of_products("bf16") == ("bf16", 180.0)
    assert with_bf16.of_products("fp32") == ("fp32", 100.0)


def test_doctor_reports_the_machine_and_exits_0_with_warnings_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MULL_HOME", str(tmp_path))
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["torch"] == torch.__version__
    assert report["peaks"]["read_gb_per_s"] > 0
    assert report["peaks"]["fp32_gflop_per_s"] > 0
    assert report["threads"] >= 1
    assert "no model is pulled yet" in [problem["what"] for problem in report["problems"]]
    assert {problem["severity"] for problem in report["problems"]} == {"warning"}


@pytest.mark.parametrize("in_the_way", ["home/models", "home"])
def test_doctor_exits_1_when_the_store_cannot_be_written(
    in_the_way: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("a file where the folder should be")
    monkeypatch.setenv("MULL_HOME", str(home))
    monkeypatch.setattr(peaks, "measure_peaks", lambda: PEAKS)
    assert main(["doctor"]) == 1
    assert "error: the model store" in capfd.readouterr().out


def test_a_healthy_machine_has_no_problems() -> None:
    assert list(find_problems(REPORT)) == []


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        ({"store_writable": False}, "MULL_HOME"),
        ({"kernels": {"native": False, "reason": "no compiler"}}, "compiler"),
        ({"threads": 8}, "--threads 2"),
        ({"store_free_bytes": 1e9}, "mull rm"),
        ({"memory_available_bytes": 5e8}, "mull show"),
        ({"models": []}, "mull pull"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_every_problem_names_its_mend(change: dict[str, object], mend: str) -> None:
    problems = list(find_problems(REPORT | change))
    assert len(problems) == 1
    assert mend in problems[0].mend
