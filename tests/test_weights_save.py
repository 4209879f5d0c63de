"""What mull writes, transformers and mull read back; what goes wrong leaves nothing behind."""

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from weights_examples import (
    TINY,
    checkpoint_tensors,
    folder_files,
    oracle_logits,
    random_ids,
    random_model,
    saved_folder,
)

from mull.errors import WeightsError
from mull.model import CausalLM, ModelConfig
from mull.weights import load_model, save_folder
from mull.weights.fp8 import dequantise, quantise

IDS = random_ids(64)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ours(tmp_path: Path, name: str, **changes: Any) -> tuple[CausalLM, Any]:
    """A model of ours and transformers' of the same weights."""
    model = random_model(name, **changes)
    folder = saved_folder(model, tmp_path / "original")
    return load_model(folder_files(folder), dtype=torch.float32), model


def reread(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return oracle_logits(model.eval(), IDS)


@pytest.mark.parametrize("name", TINY)
def test_transformers_loads_what_we_save(tmp_path: Path, name: str) -> None:
    model, theirs = ours(tmp_path, name)
    save_folder(model, tmp_path / "saved")
    assert (reread(tmp_path / "saved") - oracle_logits(theirs, IDS)).abs().max() < 1e-5
    again = load_model(folder_files(tmp_path / "saved"), dtype=torch.float32)
    for (key, one), (_, two) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(one, two), key


@pytest.mark.parametrize("name", ["llama_tied", "deepseek_v3"])
def test_saved_tensors_are_those_of_the_original_folder(tmp_path: Path, name: str) -> None:
    model, _ = ours(tmp_path, name)
    save_folder(model, tmp_path / "saved")
    original, saved = (checkpoint_tensors(tmp_path / where) for where in ("original", "saved"))
    assert original.keys() == saved.keys()  # experts apart again, a tied head not written twice
    for key, tensor in original.items():
        assert torch.equal(tensor, saved[key]), key


def test_shards_are_bounded_indexed_and_load(tmp_path: Path) -> None:
    model, theirs = ours(tmp_path, "deepseek_v3")
    save_folder(model, tmp_path / "saved", max_shard_bytes=60_000)
    shards = sorted((tmp_path / "saved").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(shard.stat().st_size < 75_000 for shard in shards)
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in checkpoint_tensors(tmp_path / "saved").values()
    )
    for shard in shards:
        with safe_open(shard, "pt") as file:
            names = set(file.keys())
        assert names == {name for name, at in index["weight_map"].items() if at == shard.name}
    assert (reread(tmp_path / "saved") - oracle_logits(theirs, IDS)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_is_written_and_named(tmp_path: Path, dtype: torch.dtype) -> None:
    model, _ = ours(tmp_path, "deepseek_v3")
    save_folder(model, tmp_path / "saved", dtype=dtype)
    original, saved = (checkpoint_tensors(tmp_path / where) for where in ("original", "saved"))
    for key, tensor in original.items():
        kept = key.endswith("e_score_correction_bias")
        assert torch.equal(saved[key], tensor if kept else tensor.to(dtype)), key
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert f"torch.{config['torch_dtype']}" == str(dtype)


def test_an_fp8_folder_round_trips(tmp_path: Path) -> None:
    model, _ = ours(tmp_path, "deepseek_v3", hidden_size=160, intermediate_size=200)
    save_folder(model, tmp_path / "saved", dtype=torch.bfloat16, fp8_blocks=True)
    stored = checkpoint_tensors(tmp_path / "saved")
    again = load_model(folder_files(tmp_path / "saved"), dtype=torch.float32)
    weight = model.model.layers[0].mlp.up_proj.weight.detach()
    wanted = dequantise(*quantise(weight))
    assert torch.equal(again.model.layers[0].mlp.up_proj.weight, wanted)
    expert = model.model.layers[1].mlp.experts.gate_up_proj[3].chunk(2)[1].detach()
    assert torch.equal(
        again.model.layers[1].mlp.experts.gate_up_proj[3].chunk(2)[1],
        dequantise(*quantise(expert)),
    )
    in_fp8 = {name for name, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn}
    assert {name + "_scale_inv" for name in in_fp8} == {
        name for name in stored if name.endswith("_scale_inv")
    }
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight"):
        assert stored[name].dtype == torch.bfloat16


def test_mtp_modules_are_saved_as_layers_with_their_copies(tmp_path: Path) -> None:
    values = json.loads(
        (saved_folder(random_model("deepseek_v3"), tmp_path / "o") / "config.json").read_text()
    )
    config = ModelConfig.from_dict({**values, "num_nextn_predict_layers": 1})
    torch.manual_seed(0)
    model = CausalLM(config, mtp=True, dtype=torch.float32)
    save_folder(model, tmp_path / "saved")
    again = load_model(folder_files(tmp_path / "saved"), dtype=torch.float32, mtp=True)
    assert torch.equal(again.mtp[0].eh_proj.weight, model.mtp[0].eh_proj.weight)
    stored = checkpoint_tensors(tmp_path / "saved")
    assert torch.equal(
        stored["model.layers.3.embed_tokens.weight"], model.model.embed_tokens.weight
    )
    assert torch.equal(stored["model.layers.3.shared_head.head.weight"], model.lm_head.weight)


def test_saving_without_the_mtp_modules_says_there_are_none(tmp_path: Path) -> None:
    model, _ = ours(tmp_path, "deepseek_v3")
    model.config = replace(model.config, num_nextn_predict_layers=1)
    save_folder(model, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 0


def test_tokenizer_files_and_end_tokens_go_along(tmp_path: Path) -> None:
    model, _ = ours(tmp_path, "llama")
    model.config = replace(model.config, eos_token_ids=(2, 7))
    source = tmp_path / "tokenizer"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "evil.py", "model.safetensors"):
        (source / name).write_text(name)
    save_folder(model, tmp_path / "saved", tokenizer_files=source)
    assert (tmp_path / "saved" / "tokenizer.json").read_text() == "tokenizer.json"
    assert not (tmp_path / "saved" / "evil.py").exists()
    generation = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 7]}
    save_folder(model, tmp_path / "other", tokenizer_files=[source / "tokenizer.json"])
    assert (tmp_path / "other" / "tokenizer.json").exists()


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    model, _ = ours(tmp_path, "llama")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("taken", "file"):
        with pytest.raises(WeightsError, match="already exists"):
            save_folder(model, tmp_path / name)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    save_folder(model, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_a_disk_that_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    model, _ = ours(tmp_path, "llama")
    target = tmp_path / "out" / "saved"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(WeightsError, match=r"saved: could not be written: File too large"):
            save_folder(model, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tokenizer_file_that_is_absent_leaves_nothing_behind(tmp_path: Path) -> None:
    model, _ = ours(tmp_path, "llama")
    with pytest.raises(WeightsError, match="No such file"):
        save_folder(model, tmp_path / "out" / "saved", tokenizer_files=[tmp_path / "absent.json"])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_dtype_that_is_no_float_is_refused(tmp_path: Path) -> None:
    model, _ = ours(tmp_path, "llama")
    with pytest.raises(WeightsError, match=r"torch\.int8"):
        save_folder(model, tmp_path / "saved", dtype=torch.int8)
