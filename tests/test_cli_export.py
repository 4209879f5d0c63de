"""`mull export`: what other programs read, and what is said when it cannot be done."""

from pathlib import Path

import pytest
import torch
from mull_command import make_store, run_mull
from test_text_export import made, tiny_bpe
from transformers import AutoModelForCausalLM, AutoTokenizer
from weights_examples import (
    LlamaModel,
    folder_files,
    gguf_files,
    llama_cpp_logits,
    oracle_logits,
    our_logits,
    random_ids,
    random_model,
    saved_folder,
)

import mull
from mull.cli.app import run
from mull.weights import load_config, load_model, tokenizer_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer of bytes, one merge and two special tokens."""
    folder = saved_folder(random_model("llama", vocab_size=264), tmp_path / "tiny")
    backend = tiny_bpe()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    files = made(tmp_path / "files", backend, eos_token="<|im_end|>", chat_template="{{ 1 }}")
    for file in files.iterdir():
        file.rename(folder / file.name)
    return folder


def test_a_folder_becomes_one_file_that_llama_cpp_and_mull_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    assert run(["export", "tiny", "--type", "f32"]) == 0
    assert capsys.readouterr().out.startswith("tiny-f32.gguf: ")
    path = folder.parent / "tiny-f32.gguf"
    ids = random_ids(50)
    wanted = our_logits(load_model(folder_files(folder), dtype=torch.float32), ids)
    assert (llama_cpp_logits(path, ids) - wanted).abs().max() < 1e-4
    assert mull.load(str(path), precision="fp32").tokenizer.chat_template == "{{ 1 }}"
    assert set(load_config(gguf_files(path)).eos_token_ids) == {2, 258}


def test_a_gguf_file_becomes_a_folder_that_transformers_and_mull_run(
    folder: Path, tmp_path: Path
) -> None:
    file, back = tmp_path / "tiny.gguf", tmp_path / "back"
    assert run(["export", str(folder), "--type", "f32", "-o", str(file)]) == 0
    assert run(["export", str(file), "--format", "hf", "-o", str(back)]) == 0
    ids = random_ids(50)
    theirs = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32)
    ours = our_logits(load_model(folder_files(folder), dtype=torch.float32), ids)
    assert (oracle_logits(theirs, ids) - ours).abs().max() < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(back)
    assert tokenizer.encode("naïve<|im_end|>")[-1] == 258
    assert tokenizer.chat_template == "{{ 1 }}"


def test_a_folder_exports_to_a_folder_of_another_type(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    assert run(["export", str(folder), "--format", "hf", "--type", "f16", "-o", str(out)]) == 0
    assert load_config(folder_files(out)).dtype == "float16"
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_model_without_tokenizer_is_exported_and_it_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tokenizer.json").unlink()
    assert run(["export", str(folder), "-o", str(tmp_path)]) == 0
    assert "without a tokenizer" in capsys.readouterr().err
    assert llama_cpp_logits(tmp_path / "tiny-f16.gguf", random_ids(5)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "onnx"], "format 'onnx' is not known: use gguf or hf"),
        (["--type", "q5_0"], "GGUF type 'q5_0' is not one of"),
        (["--format", "hf", "--type", "q8_0"], "type 'q8_0' is not one of f32, f16, bf16"),
        (["--out", "tiny/config.json"], "config.json: already exists"),
        (["--format", "hf", "--out", "tiny"], "tiny: already exists"),
        (["--out", "tiny/config.json/x.gguf"], "could not be written"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    before = sorted(folder.parent.rglob("*"))
    assert run(["export", "tiny", *options]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.startswith("mull: ")
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.slow
def test_100_greedy_tokens_of_smollm2_exported_in_float32_equal_llama_cpps(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    store = make_store(smollm2_gguf, tmp_path / "home")
    done = run_mull(
        "export", "smollm2-135m", "--type", "f32", env={"MULL_HOME": str(store)}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    path = tmp_path / "smollm2-135m-f32.gguf"
    assert done.stdout.startswith(f"{path.name}: ")
    wanted = {k: v for k, v in tokenizer_source(gguf_files(smollm2_gguf)).items() if "token" in k}
    assert {k: v for k, v in tokenizer_source(gguf_files(path)).items() if "token" in k} == wanted
    with mull.load(str(path), precision="fp32") as ours:
        prompt = ours.template.render([{"role": "user", "content": "Tell me a story."}]).ids
        answer = ours.generate(prompt, max_tokens=100, temperature=0.0, ignore_eos=True)
        logits = ours.logits([*prompt, *answer.token_ids])
    llama = LlamaModel(path)
    assert answer.token_ids == llama.greedy(prompt, 100)
    llama.close()
    assert (llama_cpp_logits(path, [*prompt, *answer.token_ids]) - logits).abs().max() < 1e-2
