"""The manifest: file names that stay inside, hashes that tell, cheap checks that suffice."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull import weights
from mull.errors import WeightsError
from mull.weights.manifest import check_relative, read_manifest, sha256_of


@pytest.fixture
def pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> weights.ModelFiles:
    monkeypatch.setenv("MULL_HOME", str(tmp_path / "home"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"tensors")
    files = weights.pull(str(source))
    for file in files.path.iterdir():  # apart from the originals, which are hard links
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    return files


@given(st.text(alphabet=st.sampled_from("ab./\\:C~\0"), max_size=12))
def test_an_accepted_file_name_stays_inside_its_folder(path: str) -> None:
    try:
        check_relative(path)
    except WeightsError:
        return
    root = Path("/root/of/model")
    landed = Path(os.path.normpath(root / path))
    assert landed != root
    assert landed.is_relative_to(root)
    assert not set(path) & set("\\:\0")


def test_ordinary_file_names_are_accepted() -> None:
    for path in ("config.json", "BF16/model-00001-of-00002.gguf", "a..b.json", ".hidden"):
        assert check_relative(path) == path


def test_verify_names_exactly_the_files_that_differ(pulled: weights.ModelFiles) -> None:
    assert weights.verify(pulled) == []
    file = pulled.path / "model.safetensors"
    stat = file.stat()
    file.write_bytes(b"tensorS")  # the same size, and its time put back: only the hash can tell
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights.verify(pulled) == ["model.safetensors"]
    file.unlink()
    assert weights.verify(pulled) == ["model.safetensors"]


def test_a_model_that_was_not_pulled_cannot_be_verified(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match="not pulled"):
        weights.verify(str(tmp_path / "model.gguf"))


def test_a_file_whose_time_moved_is_hashed_once_and_believed_if_right(
    pulled: weights.ModelFiles,
) -> None:
    file = pulled.path / "model.safetensors"
    os.utime(file, ns=(5, 5))
    weights.resolve(pulled.name)
    manifest = read_manifest(pulled.path)
    assert manifest is not None
    assert manifest.by_path()["model.safetensors"].mtime_ns == 5
    assert weights.verify(pulled) == []


def test_the_manifest_round_trips(pulled: weights.ModelFiles) -> None:
    manifest = read_manifest(pulled.path)
    assert manifest is not None
    assert manifest.by_path()["config.json"].sha256 == sha256_of(pulled.path / "config.json")
    assert pulled.manifest is not None
    assert manifest.source == pulled.manifest["source"]
    assert manifest.source["kind"] == "path"
    assert manifest.pulled_at.endswith("+00:00")
