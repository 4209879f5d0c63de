"""Loading as a whole: dtypes, progress, tokens, and what a hostile configuration may cost."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from weights_examples import (
    TINY,
    folder_files,
    gguf_files,
    our_logits,
    random_ids,
    random_model,
    saved_folder,
    write_gguf,
)

from mull.errors import MullError, WeightsError
from mull.model import CausalLM, ModelConfig
from mull.weights import holds_mtp, load_config, load_model, save_folder, tokenizer_source


def reconfigure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_tensor_is_real_in_its_dtype_and_ready_to_serve(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    path = write_gguf(random_model("deepseek_v3"), tmp_path / "model.gguf")
    files = gguf_files(path) if kind == "gguf" else folder_files(tmp_path / "model_hf")
    model = load_model(files, dtype=dtype)
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert not tensor.is_meta, name
        # The router's selection bias decides between near-ties: always float32.
        wanted = torch.float32 if name.endswith("e_score_correction_bias") else dtype
        assert tensor.dtype == wanted, name
    assert torch.isfinite(our_logits(model, random_ids(16))).all()


def test_a_tied_head_is_the_embedding_itself(tmp_path: Path) -> None:
    path = write_gguf(random_model("llama_tied"), tmp_path / "model.gguf")
    for files in (gguf_files(path), folder_files(tmp_path / "model_hf")):
        model = load_model(files)
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_progress_counts_up_to_the_resident_bytes(tmp_path: Path) -> None:
    folder = saved_folder(random_model("deepseek_v2_lite"), tmp_path / "model")
    seen: list[tuple[int, int]] = []
    model = load_model(
        folder_files(folder), dtype=torch.bfloat16, progress=lambda *step: seen.append(step)
    )
    resident = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {total for _, total in seen} == {resident}
    assert seen[-1] == (resident, resident)


def test_the_number_of_threads_is_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    load_model(folder_files(saved_folder(random_model("llama"), tmp_path / "model")))
    assert torch.get_num_threads() == before


def test_end_tokens_named_only_in_generation_config_are_known(tmp_path: Path) -> None:
    folder = saved_folder(random_model("llama"), tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7, 9, 100000, -1, "x"]}')
    assert load_config(folder_files(folder)).eos_token_ids == (2, 7, 9)


@pytest.mark.parametrize("content", ["[1]", "{", '{"eos_token_id": {}}'])
def test_an_odd_generation_config_is_refused_or_without_effect(
    tmp_path: Path, content: str
) -> None:
    folder = saved_folder(random_model("llama"), tmp_path / "model")
    (folder / "generation_config.json").write_text(content)
    try:
        assert load_config(folder_files(folder)).eos_token_ids == (2,)
    except WeightsError as error:
        assert "generation_config.json" in str(error)  # noqa: PT017


def test_the_tokenizer_of_a_folder_is_the_folder(tmp_path: Path) -> None:
    folder = saved_folder(random_model("llama"), tmp_path / "model")
    with pytest.raises(WeightsError, match=r"has no tokenizer\.json"):
        tokenizer_source(folder_files(folder))
    (folder / "tokenizer.json").write_text("{}")
    assert tokenizer_source(folder_files(folder)) == folder


def test_missing_files_are_named(tmp_path: Path) -> None:
    for files in (gguf_files(tmp_path / "no.gguf"), folder_files(tmp_path / "no")):
        for read in (load_config, load_model, tokenizer_source):
            with pytest.raises(WeightsError, match=str(files.path)):
                read(files)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 1024},
        {"vocab_size": 2**24, "hidden_size": 2**18},
        {"n_routed_experts": 2**14, "n_group": 1, "topk_group": 1},
        {"n_routed_experts": 2**14, "num_hidden_layers": 1024, "first_k_dense_replace": 0},
        {"num_nextn_predict_layers": 16, "num_hidden_layers": 1024},
    ],
)
def test_a_hostile_configuration_costs_little_before_it_is_refused(
    tmp_path: Path, changes: dict[str, int]
) -> None:
    folder = saved_folder(random_model("deepseek_v3"), tmp_path / "model")
    reconfigure(folder, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(MullError):
            load_model(folder_files(folder), mtp=True)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


MEASURE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from mull.weights import ModelFiles, load_model

def anonymous_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

peak = 0
def watch(done, total):
    global peak, calls
    peak = max(peak, anonymous_bytes())

torch.zeros(1) @ torch.zeros(1)
before = anonymous_bytes()
model = load_model(
    ModelFiles("m", Path(sys.argv[1]), sys.argv[2]), dtype=torch.bfloat16, progress=watch
)
resident = sum(tensor.nbytes for tensor in model.state_dict().values())
if model.config.tie_word_embeddings:
    resident -= model.lm_head.weight.nbytes
print(peak - before, resident)
"""


def peak_and_resident(path: Path, kind: str) -> tuple[int, int]:
    # Pages of the mapped file are the kernel's to drop, so only anonymous memory counts. It is read
    # after every few rows, while they are still held.
    command = [sys.executable, "-c", MEASURE, str(path), kind]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, resident = map(int, result.stdout.split())
    return peak, resident


def test_loading_a_gguf_needs_at_most_1_3_times_the_resident_model(smollm2_gguf: Path) -> None:
    peak, resident = peak_and_resident(smollm2_gguf, "gguf")
    assert resident == 134_515_008 * 2
    assert peak <= 1.3 * resident


def test_loading_a_folder_needs_at_most_1_3_times_the_resident_model(tmp_path: Path) -> None:
    sizes = {"vocab_size": 60_000, "hidden_size": 1024, "intermediate_size": 4096}
    config = AutoConfig.for_model(**{**TINY["llama_tied"], **sizes})
    model = CausalLM(ModelConfig.from_dict(config.to_dict()), dtype=torch.float16)
    save_folder(model, tmp_path / "model")
    peak, resident = peak_and_resident(tmp_path / "model", "hf")
    assert resident > 150_000_000
    assert peak <= 1.3 * resident


def test_modules_of_multi_token_prediction_are_held_only_when_they_are_whole(
    tmp_path: Path,
) -> None:
    shape = random_model("deepseek_v3").config.to_dict()
    config = ModelConfig.from_dict({**shape, "num_nextn_predict_layers": 1})
    model = CausalLM(config, mtp=True)
    model.init_weights()
    folder = tmp_path / "model"
    save_folder(model, folder)
    assert holds_mtp(folder_files(folder))
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    del tensors[f"model.layers.{config.num_hidden_layers}.eh_proj.weight"]
    save_file(tensors, file)
    assert not holds_mtp(folder_files(folder))
    load_model(folder_files(folder))
    assert not holds_mtp(folder_files(saved_folder(random_model("llama"), tmp_path / "other")))
