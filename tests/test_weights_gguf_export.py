"""What mull exports as GGUF, llama.cpp computes and mull reads back: the same weights and shape."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from weights_examples import (
    TINY,
    folder_files,
    gguf_files,
    llama_cpp_logits,
    our_logits,
    random_ids,
    random_model,
    saved_folder,
)

from mull.weights import export_gguf, load_config, load_model


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products are slower on two threads, by far where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# llama.cpp scores V2's expert groups as V3's (the sum of the two best; V2 was trained with the
# best alone), so it is no oracle for that routing.
LLAMA_CPP_AGREES = [name for name in TINY if name != "deepseek_v2_grouped"]


@pytest.mark.parametrize("name", TINY)
def test_a_float32_export_reads_back_as_the_same_weights_and_configuration(
    tmp_path: Path, name: str
) -> None:
    folder = saved_folder(random_model(name), tmp_path / "hf")
    export_gguf(folder_files(folder), tmp_path / "model.gguf", type="f32")
    wanted = load_model(folder_files(folder), dtype=torch.float32)
    read = load_model(gguf_files(tmp_path / "model.gguf"), dtype=torch.float32)
    assert read.state_dict().keys() == wanted.state_dict().keys()
    for key, tensor in wanted.state_dict().items():
        torch.testing.assert_close(read.state_dict()[key], tensor, rtol=0, atol=0)
    # Not in such a file: it has no tokenizer and no MTP modules.
    same = {"bos_token_id": None, "eos_token_ids": (), "num_nextn_predict_layers": 0}
    assert replace(read.config, **same) == replace(load_config(folder_files(folder)), **same)


@pytest.mark.parametrize("name", LLAMA_CPP_AGREES)
def test_llama_cpp_gives_our_logits_on_a_float32_export(tmp_path: Path, name: str) -> None:
    # The norms of DeepSeek's latents have an epsilon of their own, llama.cpp has one for all.
    folder = saved_folder(random_model(name, rms_norm_eps=1e-6), tmp_path / "hf")
    export_gguf(folder_files(folder), tmp_path / "model.gguf", type="f32")
    ids = random_ids(200)
    ours = our_logits(load_model(folder_files(folder), dtype=torch.float32), ids)
    theirs = llama_cpp_logits(tmp_path / "model.gguf", ids)
    # llama.cpp rounds activations to float16 here and there; logits span about +-2.5.
    assert (ours - theirs).abs().max() < 5e-3
