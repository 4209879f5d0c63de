"""The programs of one comparison, each in a process of its own that loads once and waits its turn.

A contender is named by a word: `mull:q4`, `llama.cpp:q8_0`, `dasllama:q8_0`, `openvino:q4_0`,
`transformers:bf16`. What is behind the colon is mull's precision (`q4+int8`: and its cache), the
type of the GGUF file that is made for a peer from the model's own weights, or a dtype.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
SCRIPTS = {
    "mull": "peer_mull.py",
    "llama.cpp": "peer_llamacpp.py",
    "dasllama": "peer_dasllama.py",
    "openvino": "peer_openvino.py",
    "transformers": "peer_transformers.py",
}
# Those that import mull or torch run under this Python, the others under the peers' own.
_OURS = ("mull", "transformers")


class ContenderError(Exception):
    """A contender is not installed, cannot load the model, or failed at a request."""


@dataclass(frozen=True)
class Setting:
    """What all contenders of a run share.

    source: the model as mull loads it (a GGUF file or a folder). work: where files made for peers
    are kept. options: of mull.load, for ours.
    """

    source: Path
    work: Path
    peers_python: Path
    threads: int
    options: dict[str, Any]


class Contender:
    """A child process that answers requests; see child.py. Raises ContenderError."""

    def __init__(self, word: str, python: Path, script: str, options: dict[str, Any]) -> None:
        self.word = word
        # A file and not a pipe: nobody reads it unless something fails.
        self._stderr = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python), str(HERE / script), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self.greeting = self._receive()

    @property
    def is_ours(self) -> bool:
        return self.word.startswith("mull:")

    @property
    def family(self) -> str:
        return self.word.partition(":")[0]

    def ask(self, do: str, **request: Any) -> dict[str, Any] | None:
        """The answer, or None where the contender says that it cannot do such a thing."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._process.stdin.flush()
        answer = self._receive()
        return None if "unsupported" in answer else answer

    def cpu_seconds(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._stderr.seek(0)
            last = (self._stderr.read().strip().splitlines() or ["it ended without a word"])[-1]
            raise ContenderError(f"{self.word}: {last}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderError(f"{self.word}: {answer['error']}")
        return answer


def start(word: str, setting: Setting) -> Contender:
    """Load one contender; raises ContenderError where it is not installed or cannot run this."""
    family, _, form = word.partition(":")
    if family not in SCRIPTS or not form:
        raise ContenderError(f"{word}: name one of {', '.join(SCRIPTS)}, a colon and a form")
    python = Path(sys.executable) if family in _OURS else setting.peers_python
    if not python.is_file():
        raise ContenderError(f"{word}: not installed here, see `make bench-peers`")
    options: dict[str, Any] = {"threads": setting.threads}
    if family == "mull":
        precision, _, cache = form.partition("+")
        options |= {"model": str(setting.source), "precision": precision, **setting.options}
        options |= {"cache": cache} if cache else {}
    elif family == "transformers":
        options |= {"model": str(setting.source), "dtype": form}
    else:
        options["model"] = str(variant(setting, form))
    if family == "dasllama":
        options["quant"] = form.replace("q8_0", "q8")
    return Contender(word, python, SCRIPTS[family], options)


def start_all(words: list[str], setting: Setting) -> tuple[list[Contender], dict[str, str]]:
    """Those that run, and why the others do not."""
    running: list[Contender] = []
    absent: dict[str, str] = {}
    for word in words:
        try:
            running.append(start(word, setting))
        except ContenderError as error:
            absent[word] = str(error).removeprefix(f"{word}: ")
            print(f"absent: {error}", file=sys.stderr)
    return running, absent


def variant(setting: Setting, form: str) -> Path:
    """The model's weights as a GGUF file of another type, made once by llama.cpp's own quantiser.

    `source` is the model's file itself.
    """
    if form == "source":
        return setting.source
    stem = setting.source.name.removesuffix(".gguf")
    path = setting.work / f"{stem}.{form}.gguf"
    if not path.is_file():
        source = setting.source if setting.source.is_file() else exported(setting)
        setting.work.mkdir(parents=True, exist_ok=True)
        _run(
            [setting.peers_python, HERE / "quantize_gguf.py", source, form, path],
            f"no {form} file without llama-cpp-python",
        )
    return path


def exported(setting: Setting) -> Path:
    """A folder's weights as one GGUF file in half precision."""
    path = setting.work / f"{setting.source.name}.f16.gguf"
    if not path.is_file():
        setting.work.mkdir(parents=True, exist_ok=True)
        main = "import sys; from mull.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", main, "export", setting.source]
        _run([*command, "--format", "gguf", "--type", "f16", "--out", path], "mull export failed")
    return path


def _run(command: list[Any], problem: str) -> None:
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [""])[-1]
        raise ContenderError(f"{problem}: {last}")
