"""Every command the pages mark as runnable (```sh, ```python) is run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mull_command import make_store

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ("getting-started.md", "commands.md")


def blocks(language: str) -> list[tuple[str, str]]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        (page, block)
        for page in PAGES
        for block in pattern.findall((DOCS / page).read_text(encoding="utf-8"))
    ]


# Training is tested where it belongs: here, that the command is right. Pretraining stays whole, for
# rejection sampling ends a run where nothing at all is answered.
SHORTER = (
    " --set stages.zero.steps=1 --set stages.reasoning.steps=2 --set stages.student.steps=1"
    " --set stages.scores.problems=4"
)
COMMANDS = list(dict.fromkeys(line for _, block in blocks("sh") for line in block.splitlines()))


@pytest.fixture(scope="session")
def store(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(smollm2_gguf, tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_documentation_runs(command: str, store: Path, tmp_path: Path) -> None:
    if command.startswith("mull train smoke"):
        command = command.partition("#")[0] + SHORTER
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**os.environ, "PATH": path, "MULL_HOME": str(store)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


def test_the_python_of_the_documentation_runs(smollm2_gguf: Path) -> None:
    snippets = [block for _, block in blocks("python")]
    assert snippets
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-c", snippet],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Paris" in done.stdout
