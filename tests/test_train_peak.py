"""What a stage of `precision = "auto"` computes in."""

import pytest
import torch

from mull.kernels import library
from mull.train import peak


@pytest.mark.parametrize(
    ("variants", "gpu", "expected"),
    [
        (["avx512bf16", "avx512vnni", "avx2"], False, "bf16"),
        (["avx512vnni", "avx2"], False, "fp32"),
        (["avx2"], True, "bf16"),
        ([], False, "fp32"),
    ],
)
def test_auto_is_bfloat16_only_where_it_is_multiplied_as_such(
    variants: list[str], gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "supported", lambda: variants)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert peak.settled("auto") == expected
    assert (peak.settled("bf16"), peak.settled("fp32")) == ("bf16", "fp32")
    monkeypatch.setattr(peak, "measure", lambda precision: {"fp32": 1.0, "bf16": 2.0}[precision])
    own = peak.Peak()
    assert own.gflop_per_s("auto") == own.gflop_per_s(peak.settled("auto"))
