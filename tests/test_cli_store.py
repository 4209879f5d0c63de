"""`mull models`, `show`, `pull` and `rm` on a store of their own."""

import json
import os
from pathlib import Path

import pytest
from mull_command import make_store

from mull import weights
from mull.cli import main
from mull.weights.packed_place import packed_folder


@pytest.fixture
def home(smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULL_HOME", str(make_store(smollm2_gguf, tmp_path / "home")))
    return tmp_path / "home"


def test_models_lists_what_is_here_and_what_can_be_pulled(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["smollm2-135m"]["is_pulled"]
    assert rows["smollm2-135m"]["bytes"] == 98_362_432
    assert rows["smollm2-135m"]["packed_bytes"] == 0
    assert not rows["deepseek-r1"]["is_pulled"]
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t")[:2] == ["nano", "comes with mull"]
    assert lines[1].split("\t")[:3] == ["smollm2-135m", "pulled", "98.4 MB"]
    packed = home / "models" / "smollm2-135m" / "packed"
    packed.mkdir()
    (packed / "q8.safetensors").write_bytes(bytes(3_000_000))
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("\t")[2] == "98.4 MB + 3.0 MB packed"


def test_a_model_that_comes_with_mull_is_told_as_that(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = weights.resolve("nano")
    size = sum(file.stat().st_size for file in files.path.iterdir())
    packed = packed_folder(files)
    packed.mkdir(parents=True)
    (packed / "bf16.safetensors").write_bytes(bytes(3_000_000))
    assert main(["models", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert (row["name"], row["bytes"], row["packed_bytes"]) == ("nano", size, 3_000_000)
    assert main(["show", "nano"]) == 0
    shown = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert (shown["source"], shown["pulled"]) == ("comes with mull", "no")
    config = weights.load_config(files)
    for mtp, suffix in ((False, ""), (True, " with mtp")):
        counts = f"{shown['parameters' + suffix]} {shown['active parameters' + suffix]}"
        assert counts == "{:,} {:,}".format(*config.parameter_count(mtp=mtp))


@pytest.mark.parametrize(
    ("name", "cache_bytes", "total"),
    [("smollm2-135m", 23_040, 134_515_008), ("deepseek-v3", 70_272, None)],
)
def test_show_says_what_a_model_needs_pulled_or_not(
    name: str, cache_bytes: int, total: int | None, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", name, "--json"]) == 0
    text = capsys.readouterr().out
    facts = json.loads(text)
    assert str(cache_bytes) in text
    assert total is None or str(total) in text
    assert facts["name"] == name
    assert main(["show", name]) == 0
    assert f"{cache_bytes:,}" in capsys.readouterr().out


def test_show_verify_finds_a_changed_file(
    smollm2_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MULL_HOME", str(tmp_path / "home"))
    own = tmp_path / "own.gguf"
    own.write_bytes(smollm2_gguf.read_bytes())
    assert main(["pull", str(own)]) == 0
    own.unlink()
    assert main(["show", "own", "--verify"]) == 0
    (stored,) = (tmp_path / "home" / "models" / "own").glob("*.gguf")
    times = stored.stat()
    with stored.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    # Size and time as they were: only the hash can tell.
    os.utime(stored, ns=(times.st_atime_ns, times.st_mtime_ns))
    capsys.readouterr()
    assert main(["show", "own", "--verify"]) == 2
    assert "not what was pulled" in capsys.readouterr().err


def test_show_describes_a_file_of_ones_own(
    smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(smollm2_gguf), "--json"]) == 0
    assert "23040" in capsys.readouterr().out


def test_a_file_is_pulled_into_the_store_and_removed_again(
    home: Path, smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.gguf"
    own.hardlink_to(smollm2_gguf)
    assert main(["pull", str(own)]) == 0
    assert "own is ready" in capsys.readouterr().out
    assert main(["rm", "own"]) == 0
    assert "98.4 MB freed" in capsys.readouterr().out
    assert own.exists()
    assert main(["models", "--json"]) == 0
    assert "own" not in [row["name"] for row in json.loads(capsys.readouterr().out)]
