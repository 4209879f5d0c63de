"""Packed files: a second start is the first one without the weights, whatever lies in the file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from mull import kernels, loading, weights
from mull.cli import main
from mull.errors import WeightsError
from mull.kernels.layout import LAYOUT_VERSION
from mull.model.config import ModelConfig
from mull.model.sequences import PackedSequences
from mull.model.transformer import CausalLM
from mull.weights import ModelFiles, OpenedModel, PackedFile, packed_file
from mull.weights.packed import own_tensors
from mull.weights.packed_file import PackedFileError, read_packed, write_packed

pytestmark = pytest.mark.skipif(
    not kernels.native_available(), reason="weights are packed for the native kernels only"
)
CPU = torch.device("cpu")
COMMON = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
FAMILIES = {
    "llama, tied": {**COMMON, "model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {**COMMON, "model_type": "qwen2", "tie_word_embeddings": False},
    "deepseek_v3": {
        **COMMON,
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
    },
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def save(folder: Path, family: str = "llama, tied", seed: int = 1) -> ModelFiles:
    torch.manual_seed(seed)
    model = CausalLM(ModelConfig.from_dict(FAMILIES[family]))
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    weights.save_folder(model, folder)
    return ModelFiles(folder.name, folder, "hf")


def load(files: ModelFiles, precision: str = "q8") -> CausalLM:
    return loading.load_prepared(OpenedModel(files), precision=precision, device=CPU)


@torch.no_grad()
def logits(model: CausalLM) -> Tensor:
    ids_T = torch.arange(1, 30)
    return model.logits(model(ids_T, PackedSequences([len(ids_T)], absorb=True)))


def never(*_: object, **__: object) -> None:
    raise AssertionError("the weights were opened")


@pytest.mark.parametrize("is_mapped", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("precision", ["q8", "q4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_start_is_the_first_and_never_opens_the_weights(
    family: str,
    precision: str,
    is_mapped: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = save(tmp_path / "model", family)
    first = logits(load(files, precision))
    plain = logits(weights.load_model(files, dtype=torch.float32))
    assert (first - plain).norm() < 0.6 * plain.norm()  # random weights, and routes that flip
    monkeypatch.setattr(weights.loader, "Filler", never)
    if is_mapped:
        monkeypatch.setattr(packed_file, "MAX_READ_BYTES", 0)
    assert torch.equal(logits(load(files, precision)), first)


def test_a_second_start_leaves_torchs_compiler_alone(tmp_path: Path, home: Path) -> None:
    # Two seconds and 70 MB, for which one operation on the meta device is enough.
    program = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from mull import loading, weights\n"
        "for folder in sys.argv[1:]:\n"
        "    opened = weights.OpenedModel(weights.ModelFiles('m', Path(folder), 'hf'))\n"
        "    loading.load_prepared(opened, precision='q4', device=torch.device('cpu'))\n"
        "print([name for name in sys.modules if name.startswith(('torch._dynamo', 'sympy'))])\n"
    )
    folders = [tmp_path / "dense", tmp_path / "latent"]
    for folder, family in zip(folders, ["llama, tied", "deepseek_v3"], strict=True):
        load(save(folder, family), "q4")
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, folders)],
        env={**os.environ, "MULL_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def one_bit_off(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1000] ^= 4
    path.write_bytes(raw)


def of_another_layout(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw.replace(f'"layout":"{LAYOUT_VERSION}"'.encode(), b'"layout":"0"'))


def claiming_a_huge_header(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[:8] = (2**62).to_bytes(8, "little")
    path.write_bytes(raw)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_bytes(b"\x80\x04cos\nsystem\n" * 1000)


def of_the_other_precision(path: Path) -> None:
    shutil.copy(path.with_name("q4.safetensors"), path)


@pytest.mark.parametrize(
    "spoil",
    [
        *(truncated, one_bit_off, of_another_layout, claiming_a_huge_header, empty, foreign),
        of_the_other_precision,
    ],
)
def test_a_file_that_is_not_right_is_told_of_in_one_line_and_written_anew(
    spoil: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = save(tmp_path / "model")
    load(files, "q4")
    expected = logits(load(files))
    path = PackedFile(files, "q8").path
    whole = path.read_bytes()
    spoil(path)
    assert path.read_bytes() != whole
    assert torch.equal(logits(load(files)), expected)
    assert path.read_bytes() == whole
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert "\n" not in record.getMessage()


def test_weights_that_have_changed_are_packed_again(tmp_path: Path) -> None:
    files = save(tmp_path / "model")
    before = logits(load(files))
    shutil.rmtree(files.path)
    save(files.path, seed=2)
    after = logits(load(files))
    assert not torch.equal(after, before)
    plain = logits(weights.load_model(files, dtype=torch.float32))
    assert (after - plain).norm() < 0.2 * plain.norm()


def test_only_one_of_several_writers_writes(tmp_path: Path) -> None:
    files = save(tmp_path / "model")
    model = loading._packed(OpenedModel(files), "q8", None, False)
    kept = PackedFile(files, "q8")
    kept.path.parent.mkdir(parents=True)
    with FileLock(kept.path.with_suffix(".lock")):
        assert not kept.write(model)
        assert not kept.exists()
    assert kept.write(model)
    assert sorted(file.suffix for file in kept.path.parent.iterdir()) == [
        *(".json", ".lock", ".safetensors")
    ]


@pytest.mark.parametrize("reason", ["no folder", "full", "breaks off"])
def test_where_nothing_can_be_kept_the_model_still_runs(
    reason: str,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = save(tmp_path / "model")
    if reason == "no folder":
        home.mkdir()
        (home / "packed").write_text("in the way")  # root may write to any read-only folder
    elif reason == "full":
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    else:

        def breaks_off(file: object, *_: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(weights.packed, "write_packed", breaks_off)
    plain = logits(weights.load_model(files, dtype=torch.float32))
    got = logits(load(files))
    assert (got - plain).norm() < 0.2 * plain.norm()
    (record,) = caplog.records
    assert "not kept" in record.getMessage()
    assert not PackedFile(files, "q8").exists()
    assert not list(home.rglob("*.partial"))


def test_the_file_is_plain_safetensors_on_64_byte_boundaries(tmp_path: Path) -> None:
    files = save(tmp_path / "model", "deepseek_v3")
    model = loading._packed(OpenedModel(files), "q8", None, False)
    kept = PackedFile(files, "q8")
    assert kept.write(model)
    wanted = own_tensors(model)
    with safe_open(kept.path, framework="pt") as file:
        assert file.metadata()["precision"] == "q8"
        for name, tensor in wanted.items():
            assert torch.equal(file.get_tensor(name), tensor), name
    found = read_packed(kept.path, wanted, kept.metadata)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values())


def test_a_models_packed_files_go_with_it(tmp_path: Path, home: Path) -> None:
    files = weights.pull(str(save(tmp_path / "model").path))
    load(files)
    assert weights.packed_bytes(files) == PackedFile(files, "q8").path.stat().st_size
    assert weights.describe(files)["packed_bytes"] == weights.packed_bytes(files)
    assert weights.remove("model") > weights.packed_bytes(files)
    assert not list(home.rglob("*.safetensors"))


def test_of_a_path_only_what_was_packed_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = save(tmp_path / "model")
    assert main(["rm", str(files.path)]) == 2
    load(files)
    assert main(["rm", str(files.path)]) == 0
    assert "packed weights" in capsys.readouterr().out
    assert weights.packed_bytes(files) == 0
    load(files)


def test_modules_of_multi_token_prediction_have_a_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {**FAMILIES["deepseek_v3"], "num_nextn_predict_layers": 1}
    torch.manual_seed(3)
    model = CausalLM(ModelConfig.from_dict(shape), mtp=True)
    model.init_weights()
    weights.save_folder(model, tmp_path / "model")
    files = ModelFiles("model", tmp_path / "model", "hf")

    def tensors(mtp: bool) -> dict[str, Tensor]:
        opened = OpenedModel(files)
        loaded = loading.load_prepared(opened, precision="q8", device=CPU, mtp=mtp)
        return own_tensors(loaded)

    plain, whole = tensors(mtp=False), tensors(mtp=True)
    assert len(whole) > len(plain)
    monkeypatch.setattr(weights.loader, "Filler", never)
    for mtp, wanted in ((False, plain), (True, whole)):
        found = tensors(mtp)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_what_was_packed_of_a_path_that_is_gone_is_deleted(tmp_path: Path) -> None:
    gone, here = save(tmp_path / "gone"), save(tmp_path / "here")
    load(gone)
    shutil.rmtree(gone.path)
    load(here)
    assert not PackedFile(here, "q8").path.parent.parent.joinpath("gone").exists()
    assert weights.packed_bytes(gone) == 0
    assert weights.packed_bytes(here) > 0


TENSORS = {
    "a": torch.arange(100, dtype=torch.uint8),
    "b": torch.linspace(-1, 1, 33),
    "c": torch.ones(3, 5, dtype=torch.bfloat16),
}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_byte_of_a_file_can_change_unseen(tmp_path: Path, data: st.DataObject) -> None:
    path, metadata = tmp_path / "file", {"of": "test"}
    with path.open("wb") as file:
        write_packed(file, TENSORS, metadata)
    raw = bytearray(path.read_bytes())
    found = read_packed(path, TENSORS, metadata)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
    else:
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    path.write_bytes(raw)
    with pytest.raises(PackedFileError):
        read_packed(path, TENSORS, metadata)


def test_a_file_that_cannot_be_read_is_an_os_error_for_the_caller(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        read_packed(tmp_path / "none", TENSORS, {})
    assert issubclass(PackedFileError, WeightsError)
