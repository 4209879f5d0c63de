"""Hugging Face folders: what reads, and what is refused and how."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from weights_examples import (
    TINY,
    checkpoint_tensors,
    folder_files,
    oracle_logits,
    our_logits,
    random_ids,
    random_model,
    saved_folder,
)

from mull.errors import MullError, WeightsError
from mull.weights import load_model
from mull.weights.fp8 import quantise

IDS = random_ids(64)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loaded_logits(folder: Path, **options: Any) -> torch.Tensor:
    return our_logits(load_model(folder_files(folder), **{"dtype": torch.float32, **options}), IDS)


@pytest.mark.parametrize("name", TINY)
def test_a_folder_gives_transformers_logits(tmp_path: Path, name: str) -> None:
    model = random_model(name)
    folder = saved_folder(model, tmp_path / "model")
    assert (loaded_logits(folder) - oracle_logits(model, IDS)).abs().max() < 1e-4


def test_a_sharded_folder_is_the_same_model(tmp_path: Path) -> None:
    model = random_model("deepseek_v3")
    folder = saved_folder(model, tmp_path / "model", max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert (loaded_logits(folder) - oracle_logits(model, IDS)).abs().max() < 1e-4


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16, None])
def test_any_stored_type_becomes_the_asked_one(
    tmp_path: Path, stored: torch.dtype, asked: torch.dtype | None
) -> None:
    folder = saved_folder(random_model("llama").to(stored), tmp_path / "model")
    model = load_model(folder_files(folder), dtype=asked)
    wanted = checkpoint_tensors(folder)["model.layers.1.mlp.up_proj.weight"]
    weight = model.model.layers[1].mlp.up_proj.weight
    assert weight.dtype == (asked or stored)
    torch.testing.assert_close(weight.detach(), wanted.to(weight.dtype), rtol=0, atol=0)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a folder of one file."""
    tensors = checkpoint_tensors(folder)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")


def reconfigure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_fp8_blocks_load_as_what_they_stand_for(tmp_path: Path) -> None:
    # 160 x 300: neither a multiple of 128, more rows than a block.
    model = random_model("llama", hidden_size=160, intermediate_size=300, vocab_size=100)
    ids = [token % 100 for token in IDS]
    folder = saved_folder(model, tmp_path / "model")

    def to_fp8(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            tensors[name], tensors[name + "_scale_inv"] = quantise(tensors[name])

    rewrite(folder, to_fp8)
    reconfigure(
        folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}
    )
    # The oracle computes with the same values, brought back by plain indexing.
    stored = checkpoint_tensors(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name + "_scale_inv" in stored:
                scale = stored[name + "_scale_inv"]
                scale = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
                rows, columns = parameter.shape
                parameter.copy_(stored[name].float() * scale[:rows, :columns])
    ours = our_logits(load_model(folder_files(folder), dtype=torch.float32), ids)
    assert (ours - oracle_logits(model, ids)).abs().max() < 1e-4


def with_mtp(folder: Path) -> None:
    """Adds an MTP layer as DeepSeek-V3's files have it: a layer like the last, and more."""

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.layers.2.")]:
            tensors[name.replace("layers.2.", "layers.3.")] = tensors[name] + 0.5
        width = tensors["model.norm.weight"].shape[0]
        for name in ("enorm", "hnorm", "shared_head.norm"):
            tensors[f"model.layers.3.{name}.weight"] = torch.rand(width)
        tensors["model.layers.3.eh_proj.weight"] = torch.rand(width, 2 * width)
        tensors["model.layers.3.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.3.shared_head.head.weight"] = tensors["lm_head.weight"].clone()

    rewrite(folder, add)
    reconfigure(folder, num_nextn_predict_layers=1)


def test_mtp_layers_are_skipped_unless_asked_for(tmp_path: Path) -> None:
    model = random_model("deepseek_v3")
    folder = saved_folder(model, tmp_path / "model")
    with_mtp(folder)
    assert (loaded_logits(folder) - oracle_logits(model, IDS)).abs().max() < 1e-4
    with_it = load_model(folder_files(folder), dtype=torch.float32, mtp=True)
    stored = checkpoint_tensors(folder)
    assert len(with_it.mtp) == 1
    for ours, theirs in [
        (with_it.mtp[0].eh_proj.weight, "eh_proj.weight"),
        (with_it.mtp[0].mlp.experts.down_proj[5], "mlp.experts.5.down_proj.weight"),
        (with_it.mtp[0].shared_head.norm.weight, "shared_head.norm.weight"),
    ]:
        assert torch.equal(ours, stored[f"model.layers.3.{theirs}"])


def test_leftover_rope_buffers_and_a_tied_head_are_no_surplus(tmp_path: Path) -> None:
    model = random_model("llama_tied")
    folder = saved_folder(model, tmp_path / "model")

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(folder, add)
    assert (loaded_logits(folder) - oracle_logits(model, IDS)).abs().max() < 1e-4


def _index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")


Q = "model.layers.1.self_attn.q_proj.weight"
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: rewrite(f, lambda t: t.pop(Q)), rf"lacks tensor {Q}"),
    "missing many": (
        lambda f: rewrite(f, lambda t: [t.pop(n) for n in list(t) if "mlp" in n]),
        "and 3 more",
    ),
    "surplus": (
        lambda f: rewrite(f, lambda t: t.update({"model.layers.9.x": torch.ones(3)})),
        r"model\.safetensors: holds tensor model\.layers\.9\.x",
    ),
    "wrong shape": (
        lambda f: rewrite(f, lambda t: t.update({Q: t[Q][:-1]})),
        rf"model\.safetensors: tensor {Q} has the shape \(63, 64\).*\(64, 64\)",
    ),
    "transposed": (
        lambda f: rewrite(f, lambda t: t.update({"model.norm.weight": torch.ones(64, 1)})),
        "model.norm.weight has the shape",
    ),
    "integers": (
        lambda f: rewrite(f, lambda t: t.update({Q: t[Q].to(torch.int32)})),
        f"{Q} is of type I32",
    ),
    "fp8 without scales": (
        lambda f: rewrite(f, lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)})),
        "scales.*missing",
    ),
    "fp8 with scales of another shape": (
        lambda f: rewrite(
            f,
            lambda t: t.update(
                {Q: t[Q].to(torch.float8_e4m3fn), Q + "_scale_inv": torch.ones(2, 1)}
            ),
        ),
        r"scale_inv has the shape \(2, 1\)",
    ),
    "scales without fp8": (
        lambda f: rewrite(f, lambda t: t.update({Q + "_scale_inv": torch.ones(1, 1)})),
        "scale_inv, which this configuration has no place for",
    ),
    "another quantisation": (
        lambda f: reconfigure(f, quantization_config={"quant_method": "gptq"}),
        "quantised with 'gptq'",
    ),
    "block size": (
        lambda f: reconfigure(
            f, quantization_config={"quant_method": "fp8", "weight_block_size": [0, 128]}
        ),
        "weight_block_size",
    ),
    "config of another model": (lambda f: reconfigure(f, num_hidden_layers=3), "lacks tensor"),
    "config of a far larger model": (
        lambda f: reconfigure(f, num_hidden_layers=1000, vocab_size=10_000_000),
        "describes .* parameters, the files hold",
    ),
    "only a pickle": (_only_pickle, r"pytorch_model\.bin, a pickle"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no \.safetensors file"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: there is no such file"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{'a': 1}"), "not valid JSON"),
    "config is binary": (
        lambda f: (f / "config.json").write_bytes(b"\xff\0\x80"),
        "not valid JSON",
    ),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    "config is huge": (
        lambda f: (f / "config.json").write_text('{"a": "' + "x" * 5_000_000 + '"}'),
        "too large",
    ),
    "config is deeply nested": (
        lambda f: (f / "config.json").write_text("[" * 100_000 + "]" * 100_000),
        "not valid JSON",
    ),
    "config has a number of many digits": (
        lambda f: (f / "config.json").write_text('{"vocab_size": ' + "9" * 10_000 + "}"),
        "not valid JSON",
    ),
    "unknown architecture": (lambda f: reconfigure(f, model_type="mamba"), "unknown architecture"),
    "index without map": (lambda f: _index(f, []), "no weight_map"),  # type: ignore[arg-type]
    "index out of the folder": (
        lambda f: _index(f, {Q: "../model.safetensors"}),
        "no file here",
    ),
    "index to a pickle": (lambda f: _index(f, {Q: "pytorch_model.bin"}), "no file here"),
    "index to a number": (lambda f: _index(f, {Q: 3}), "no file here"),
    "index to an absent file": (lambda f: _index(f, {Q: "b.safetensors"}), r"b\.safetensors"),
    "index to an absent tensor": (
        lambda f: _index(f, {"model.nothing": "model.safetensors"}),
        "lacks tensor 'model.nothing', which the index puts there",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path: Path, what: str) -> None:
    folder = saved_folder(random_model("llama"), tmp_path / "model")
    damage, said = WRONG[what]
    damage(folder)
    with pytest.raises(MullError, match=said) as caught:
        load_model(folder_files(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_safetensors_file_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved_folder(random_model("llama"), tmp_path / "model")
    path = folder / "model.safetensors"
    good = path.read_bytes()
    for length in [*range(64), *range(64, len(good), len(good) // 61), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            load_model(folder_files(folder))
    path.write_bytes(good + b"\0")
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_model(folder_files(folder))


HEADERS = {
    "longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"{{{{",
    "offsets beyond the file": b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "offsets backwards": b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}',
    "offsets that overlap": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
    "sizes that wrap around": b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],'
    b'"data_offsets":[0,8]}}',
    "negative size": b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
    "unknown type": b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}',
    "a name with a line break": b'{"a\\nb":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_bad_safetensors_header_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    folder = saved_folder(random_model("llama"), tmp_path / "model")
    header = HEADERS[what]
    if header.startswith(b'{"'):
        header = len(header).to_bytes(8, "little") + header + b"\0" * 8
    (folder / "model.safetensors").write_bytes(header)
    with pytest.raises(WeightsError, match=r"model\.safetensors") as caught:
        load_model(folder_files(folder))
    assert "\n" not in str(caught.value)
