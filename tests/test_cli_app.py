"""What all verbs share: a light start, one line per error, exit codes."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from mull_command import MULL, run_mull

import mull
from mull.cli import main

HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "gguf",
    "huggingface_hub",
    "prompt_toolkit",
)


@pytest.mark.parametrize(
    "words", [["--help"], ["ask", "--help"], ["chat", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from mull.cli import main; code = main(sys.argv[1:]);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in ("ask", "chat", "pull", "models", "show", "rm", "bench", "doctor"):
        assert f"\n  {verb} " in out


def test_version_is_that_of_the_package() -> None:
    done = run_mull("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"mull {mull.__version__}\n", "")


def assert_one_line_and_2(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    code = main(words)
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("mull: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ask", "--no-such-flag", "hi"], "--no-such-flag"),
        (["no-such-verb"], "no-such-verb"),
        (["ask", "hi", "--max-tokens", "many"], "--max-tokens"),
        (["rm"], "MODEL"),
        (["ask", "hi", "-m", "no-such-model"], "no-such-model"),
        (["ask", "hi", "-m", "./absent.gguf"], "absent.gguf"),
        (["ask", "hi", "-m", "smollm2-135"], "smollm2-135m"),
        (["ask", "hi", "--temperature", "-1"], "temperature"),
        (["ask", "hi", "--temperature", "1e9"], "temperature"),
        (["ask", "hi", "--temperature", "nan"], "temperature"),
        (["ask", "hi", "--temperature", "inf"], "temperature"),
        (["ask", "hi", "--top-p", "0"], "top_p"),
        (["ask", "hi", "--top-p", "2"], "top_p"),
        (["ask", "hi", "--max-tokens", "0"], "max_tokens"),
        (["ask", "hi", "--max-tokens", "-5"], "max_tokens"),
        (["ask", "hi", "--think-budget", "-1"], "think_budget"),
        (["ask", "hi", "--seed", "1" * 40], "seed"),
        (["ask", "hi", "--device", "toaster"], "toaster"),
        (["ask", "hi", "--threads", "0"], "threads"),
        (["ask", "hi", "--precision", "q3"], "q3"),
        (["ask", "hi", "--precision", "int4"], "q8 or q4"),
        (["ask", "hi", "--cache", "int4"], "bf16 or int8"),
        (["ask", "hi", "--context", "0"], "context"),
        (["ask", ""], "empty"),
        (["ask", " \n "], "empty"),
        (["chat", "--temperature", "-1"], "temperature"),
        (["chat", "-m", "no-such-model"], "no-such-model"),
        (["bench", "no-such-model"], "no-such-model"),
        (["show", "no-such-model"], "no-such-model"),
        (["rm", "no-such-model"], "no-such-model"),
        (["rm", "../models"], "models"),
        (["pull", "no-such-model"], "no-such-model"),
        (["doctor", "--threads", "0"], "threads"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], says: str, capfd: pytest.CaptureFixture[str], smollm2_gguf: Path
) -> None:
    assert says in assert_one_line_and_2(words, capfd)


def test_a_bad_model_file_is_one_line_and_exit_code_2(
    capfd: pytest.CaptureFixture[str], smollm2_gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.bin").write_bytes(pickle.dumps({"weights": [1.0]}))
    (tmp_path / "pickle.gguf").write_bytes(pickle.dumps({"weights": [1.0]}))
    (tmp_path / "empty.gguf").write_bytes(b"")
    with smollm2_gguf.open("rb") as file:
        head = file.read(3_000_000)
    for size in (3, 30, 3000, 3_000_000):
        (tmp_path / f"cut{size}.gguf").write_bytes(head[:size])
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"')
    for name in ("config.json", "notes.txt"):
        (tmp_path / name).write_text("hello")
    for path in sorted(tmp_path.iterdir()):
        for words in (["ask", "hi", "-m", str(path)], ["show", str(path)], ["bench", str(path)]):
            assert_one_line_and_2(words, capfd)


def test_a_name_full_of_control_characters_makes_one_harmless_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert "\x1b" not in assert_one_line_and_2(["ask", "hi", "-m", "a\x1b[2J\nb"], capfd)


def test_a_prompt_longer_than_the_context_says_how_much_fits(
    capfd: pytest.CaptureFixture[str], smollm2_gguf: Path
) -> None:
    err = assert_one_line_and_2(["ask", "word " * 500, "--context", "256"], capfd)
    assert "fit" in err
    assert "255" in err or "256" in err


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", f"'{MULL}' models --json | head -c 1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[", "")


@pytest.mark.parametrize(
    ("words", "code", "lines"), [("ask <&-", 2, 1), ("models >&-", 0, 0), ("show nope 2>&-", 2, 0)]
)
def test_a_closed_stream_is_an_empty_one(words: str, code: int, lines: int) -> None:
    done = subprocess.run(
        ["bash", "-c", f"'{MULL}' {words}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, lines), done.stderr
