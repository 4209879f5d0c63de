"""Names to files, the list of models, removal: and never a step outside the store."""

import subprocess
import sys
from pathlib import Path

import pytest

from mull import weights
from mull.errors import WeightsError
from mull.weights.store import lock_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def pulled(tmp_path: Path) -> weights.ModelFiles:
    source = tmp_path / "little-model.gguf"
    source.write_bytes(b"GGUF little")
    return weights.pull(str(source))


def test_mull_home_decides_where_models_lie(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights.models_home() == home / "models"
    monkeypatch.delenv("MULL_HOME")
    assert weights.models_home() == Path.home() / ".mull" / "models"


def test_a_model_is_found_by_name_by_folder_and_by_file(
    pulled: weights.ModelFiles, tmp_path: Path
) -> None:
    assert weights.resolve("little-model") == pulled
    assert [files.name for files in weights.pulled_models()] == ["little-model"]
    file = weights.resolve(str(tmp_path / "little-model.gguf"))
    assert (file.kind, file.name, file.manifest) == ("gguf", "little-model", None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    assert weights.resolve(tmp_path / "folder").kind == "hf"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "model.gguf").write_bytes(b"GGUF")
    assert weights.resolve(tmp_path / "one").path.name == "model.gguf"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("deepseek-r1", r"`mull pull deepseek-r1` \(688.6 GB\)"),
        ("DeepSeek-R1", "`mull pull deepseek-r1`"),
        ("litle-model", "did you mean little-model"),
        ("deepseek-r1-distil-qwen-7b", "did you mean deepseek-r1-distill-qwen-7b"),
        ("nothing/like-it", "`mull pull nothing/like-it`"),
        ("./absent.gguf", "no such file"),
        ("xyzzy", "`mull models` lists"),
    ],
)
def test_what_is_not_there_is_told_with_a_way_on(
    pulled: weights.ModelFiles, name: str, told: str
) -> None:
    with pytest.raises(WeightsError, match=told) as caught:
        weights.resolve(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["~no_such_user_x/model", "a" * 5000])
def test_what_can_be_no_path_is_one_line(name: str) -> None:
    for act in (weights.resolve, weights.pull, weights.describe):
        with pytest.raises(WeightsError, match="cannot be looked at") as caught:
            act(name)
        assert len(str(caught.value)) < 200


def test_a_home_that_does_not_exist_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULL_HOME", "~no_such_user_x")
    with pytest.raises(WeightsError, match="no_such_user_x"):
        weights.list_models()


def test_what_is_no_model_is_told_apart(tmp_path: Path) -> None:
    for name, told in (
        ("model.bin", "pickle"),
        ("model.pt", "pickle"),
        ("notes.txt", "not a model"),
        ("empty", "no config.json"),
    ):
        path = tmp_path / name
        path.write_bytes(b"x") if "." in name else path.mkdir()
        with pytest.raises(WeightsError, match=told):
            weights.resolve(path)
    (tmp_path / "empty" / "a.gguf").touch()
    (tmp_path / "empty" / "b.gguf").touch()
    with pytest.raises(WeightsError, match="name one of them"):
        weights.resolve(tmp_path / "empty")


def test_a_pulled_file_that_changed_or_went_is_refused(pulled: weights.ModelFiles) -> None:
    pulled.path.write_bytes(b"GGUF longer than before")
    with pytest.raises(WeightsError, match="has changed its size"):
        weights.resolve("little-model")
    pulled.path.unlink()
    with pytest.raises(WeightsError, match="is missing"):
        weights.resolve("little-model")


def test_a_removed_model_is_gone_and_nothing_else(
    pulled: weights.ModelFiles, tmp_path: Path
) -> None:
    assert weights.remove("little-model") > 0
    assert weights.pulled_models() == []
    assert (tmp_path / "little-model.gguf").read_bytes() == b"GGUF little"
    with pytest.raises(WeightsError, match="no model 'little-model'"):
        weights.remove("little-model")


@pytest.mark.parametrize("name", ["..", ".", "", ".partial", "../models", "/etc", "a/../..", "~"])
def test_removal_never_leaves_the_store(
    pulled: weights.ModelFiles, tmp_path: Path, name: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WeightsError):
        weights.remove(name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_in_the_store_is_removed_but_not_what_it_points_to(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "config.json").write_text("{}")
    weights.models_home().mkdir(parents=True)
    (weights.models_home() / "linked").symlink_to(target)
    assert weights.resolve("linked").kind == "hf"
    weights.remove("linked")
    assert (target / "config.json").exists()
    assert not (weights.models_home() / "linked").exists()


def test_a_model_being_pulled_is_not_removed(pulled: weights.ModelFiles) -> None:
    with lock_of("little-model"), pytest.raises(WeightsError, match="running"):
        weights.remove("little-model")
    assert weights.resolve("little-model") == pulled


def test_a_damaged_manifest_is_one_readable_error(pulled: weights.ModelFiles) -> None:
    manifest = pulled.path.with_name("manifest.json")
    for content in ("", "{", "[]", "{}", '{"files": [{"path": "../x"}]}', '{"files": 3}'):
        manifest.write_text(content)
        with pytest.raises(WeightsError) as caught:
            weights.resolve("little-model")
        assert "\n" not in str(caught.value)
    assert weights.pulled_models() == []
    weights.remove("little-model")


def test_the_store_is_read_without_loading_torch() -> None:
    program = (
        "import sys; from mull import weights; weights.list_models(); weights.load_catalog()\n"
        "sys.exit('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_every_public_name_of_the_room_is_there() -> None:
    for name in weights.__all__:
        assert callable(getattr(weights, name)), name
