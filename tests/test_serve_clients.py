"""What the READMEs, docs/clients.md and accounts.md print, run as it stands, on real models."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wire_server import running_server

from mull.cli import main
from mull.serve.settings import DEFAULT_PORT

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = ("README.md", "README.ko.md", "docs/clients.md")


def blocks(language: str, page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def lines(language: str, page: str) -> list[str]:
    return [line for block in blocks(language, page) for line in block.splitlines()]


def of_all_pages(find: Callable[[str, str], list[str]], language: str) -> list[str]:
    """Once where two pages say the same."""
    return list(dict.fromkeys(each for page in PAGES for each in find(language, page)))


@pytest.fixture(scope="module")
def port(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The one the page names, where nobody has it."""
    database = f"sqlite:///{tmp_path_factory.mktemp('clients') / 'chats.db'}"
    with socket.socket() as probe:
        is_free = probe.connect_ex(("127.0.0.1", DEFAULT_PORT)) != 0
    wanted = DEFAULT_PORT if is_free else 0
    with running_server(
        Path("smollm2-135m"), port=wanted, database_url=database, cache_tokens=None
    ) as url:
        yield int(url.rpartition(":")[2])


def output(command: list[str], port: int, **environment: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [word.replace(str(DEFAULT_PORT), str(port)) for word in command],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "line", [line for line in of_all_pages(lines, "sh") if not line.startswith("make ")]
)
def test_a_shell_line_of_the_pages_works(line: str, port: int) -> None:
    said = output(["bash", "-o", "pipefail", "-c", line.replace(".venv/bin/", "")], port)
    sure = "temperature" in line  # others draw their words
    assert ("Paris" if sure else "smollm2-135m" if line.endswith("/models") else "") in said
    assert said.strip()


@pytest.mark.parametrize("code", of_all_pages(blocks, "python"))
def test_the_python_of_the_pages_works(code: str, port: int) -> None:
    said = output([sys.executable, "-c", code], port)
    assert said.strip()
    assert "Paris" in said or "temperature" not in code
    assert "1776" in said or "nano" not in code


def test_the_llm_tool_works_as_it_is(port: int, tmp_path: Path) -> None:
    pytest.importorskip("llm", reason="pip install -e '.[dev]'")
    (models,) = blocks("yaml", "docs/clients.md")
    there = models.replace(str(DEFAULT_PORT), str(port))
    (tmp_path / "extra-openai-models.yaml").write_text(there)
    said = [
        output(["bash", "-c", line], port, LLM_USER_PATH=str(tmp_path))
        for line in lines("llm", "docs/clients.md")
    ]
    assert "Paris" in said[0]
    assert "Paris" in said[1]
    assert '"age"' in said[2]


def test_the_lines_about_keys_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MULL_HOME", str(tmp_path))
    (block,) = blocks("sh", "docs/accounts.md")
    for line in block.splitlines():
        assert main(shlex.split(line)[1:]) == 0, line
        assert capfd.readouterr().out.strip()


def test_every_flag_of_the_server_is_in_the_documentation() -> None:
    said = "".join((DOCS / page).read_text(encoding="utf-8") for page in ("commands.md", "api.md"))
    flags = set(re.findall(r"--[a-z-]+", output(["mull", "up", "--help"], DEFAULT_PORT)))
    assert {flag for flag in flags - {"--help"} if flag not in said} == set()
