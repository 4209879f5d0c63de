"""`mull ask` with the real model."""

import io
import json
import sys
from pathlib import Path

import pytest
from mull_command import Terminal, run_mull

from mull.cli import main

QUESTION = "What is the capital of France?"


def test_json_is_the_promised_object_and_nothing_else(smollm2_gguf: Path) -> None:
    done = run_mull("ask", QUESTION, "--json", "--max-tokens", "32", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer) == {"model", "thinking", "answer", "usage", "timing", "finish_reason"}
    assert set(answer["usage"]) == {"prompt_tokens", "reasoning_tokens", "completion_tokens"}
    assert set(answer["timing"]) == {"ttft_s", "tokens_per_s"}
    assert answer["model"] == "smollm2-135m"
    assert "Paris" in answer["answer"]
    assert answer["thinking"] == ""
    assert answer["finish_reason"] == "stop"
    assert 1 <= answer["usage"]["completion_tokens"] <= 32
    assert answer["usage"]["prompt_tokens"] > 10
    assert answer["timing"]["ttft_s"] > 0
    assert answer["timing"]["tokens_per_s"] > 0


def test_the_plain_answer_is_that_of_json_and_the_seed_repeats_it(
    smollm2_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["ask", "Name", "a", "colour.", "--seed", "3", "--max-tokens", "24"]
    assert main(words) == 0
    plain = capfd.readouterr().out
    assert main([*words, "--json"]) == 0
    assert plain.strip() == json.loads(capfd.readouterr().out)["answer"].strip()
    assert main([*words, "--system", "You are a pirate."]) == 0
    assert capfd.readouterr().out != plain


def test_keys_and_values_may_be_kept_in_8_bits(
    smollm2_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["ask", QUESTION, "--cache", "int8", "--temperature", "0", "--max-tokens", "16"]
    assert main(words) == 0
    assert "Paris" in capfd.readouterr().out


@pytest.mark.parametrize("words", [[], ["-"], ["What is the capital", "-"]])
def test_the_question_may_come_from_standard_input(
    words: list[str],
    smollm2_gguf: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "of France?" if len(words) == 2 else QUESTION
    monkeypatch.setattr(sys, "stdin", io.StringIO(text + "\n"))
    assert main(["ask", *words, "--temperature", "0", "--max-tokens", "16"]) == 0
    assert "Paris" in capfd.readouterr().out


def test_without_any_sampling_flag_a_model_that_does_not_think_repeats_itself(
    smollm2_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", QUESTION]) == 0
    assert capfd.readouterr().out == "The capital of France is Paris.\n"


def test_ctrl_c_ends_with_130_and_no_traceback(smollm2_gguf: Path) -> None:
    asking = Terminal(["ask", "Write a long story about a lighthouse."])
    asking.wait_for(",")
    asking.send("\x03")
    assert asking.exit_code() == 130
    assert "Traceback" not in asking.raw


def test_an_answer_cut_at_the_limit_says_so_on_stderr(
    smollm2_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "Tell me a long story.", "--max-tokens", "3", "--temperature", "0"]) == 0
    out, err = capfd.readouterr()
    assert out.strip()
    assert "--max-tokens" in err
