"""The store of models on this machine: names to files, the list, and removal.

A model NAME lies in (MULL_HOME or ~/.mull)/models/NAME; a hub's ORG/REPO in models/ORG--REPO.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from mull.errors import WeightsError
from mull.weights.catalog import find, load_catalog, near_matches
from mull.weights.files import ModelFiles
from mull.weights.manifest import check_unchanged, read_manifest

PARTIAL = ".partial"
_PIECE = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_SHIPPED = Path(__file__).parent / "shipped"
_NAME = re.compile(rf"{_PIECE}(?:/{_PIECE})?(?:@[A-Za-z0-9._-]+)?(?::[A-Za-z0-9._-]+)?")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def models_home() -> Path:
    """The folder of pulled models; it need not exist yet."""
    home = os.environ.get("MULL_HOME")
    return typed_path(home or "~/.mull") / "models"


def typed_path(text: str) -> Path:
    """A path as somebody typed it, its ~ replaced. Raises WeightsError for what can be none."""
    try:
        path = Path(text).expanduser()
        path.exists()  # says so where the system refuses the name
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise WeightsError(f"{shown!r} cannot be looked at ({reason}): give another path") from None
    return path


def is_name(text: str) -> bool:
    """Whether this may name a model in the store: NAME, ORG/REPO, with @REVISION and :FILE."""
    return len(text) <= 200 and ".." not in text and _NAME.fullmatch(text) is not None


def folder_of(name: str) -> Path:
    """Where the model of this name lies or would lie. Refuses names that could leave the store."""
    if not is_name(name):
        raise WeightsError(
            f"{name!r} is no model name: letters, digits, '.', '_' and '-', or ORG/REPO from a hub"
        )
    return models_home() / name.replace("/", "--").replace(":", "+")


def partial_of(name: str) -> Path:
    """Where a pull of this name gathers its files until all are there."""
    return models_home() / PARTIAL / folder_of(name).name


def plan_of(name: str) -> Path:
    """Where a pull from a hub keeps what the first listing resolved, until the model is there."""
    return partial_of(name).with_name(f"{folder_of(name).name}.plan.json")


def lock_of(name: str) -> FileLock:
    """Held while a model of this name is pulled or removed; a process that ends lets go of it."""
    return FileLock(f"{partial_of(name)}.lock")


def _stored(name: str) -> Path | None:
    for candidate in (name, name.lower()):
        if is_name(candidate) and (folder := folder_of(candidate)).is_dir():
            return folder
    return None


def resolve(name_or_path: str | Path) -> ModelFiles:
    """The files of a model: a name in the store, a folder in Hugging Face layout, or a .gguf file.

    Raises WeightsError, with near matches or the command that gets it, where there is no such model
    and where a pulled file has changed since.
    """
    text = str(name_or_path)
    if folder := _stored(text):
        return _from_store(folder, check=True)
    path = typed_path(text)
    if path.exists():
        return from_path(path)
    if files := _shipped().get(text.lower()):
        return files
    raise _not_found(text)


def _shipped() -> dict[str, ModelFiles]:
    """Models that came with mull itself, by name; one of that name in the store goes first."""
    folders = sorted(config.parent for config in _SHIPPED.glob("*/config.json"))
    licence = {"licence": "Apache-2.0", "source": {"kind": "shipped"}}
    return {each.name: ModelFiles(each.name, each, "hf", licence) for each in folders}


def is_shipped(files: ModelFiles) -> bool:
    """Whether a model is part of mull itself: nothing to pull or to remove."""
    return files.path.parent == _SHIPPED


def _from_store(folder: Path, *, check: bool) -> ModelFiles:
    manifest = read_manifest(folder)
    if manifest is None:  # put there by hand: usable, but nothing to check it against
        return from_path(folder)
    if check:
        check_unchanged(folder, manifest)
    raw = manifest.to_dict()
    ggufs = sorted(record.path for record in manifest.files if record.path.endswith(".gguf"))
    if ggufs:
        return ModelFiles(manifest.name, folder / ggufs[0], "gguf", raw)
    return ModelFiles(manifest.name, folder, "hf", raw)


def from_path(path: Path) -> ModelFiles:
    """The files of a model outside the store. Raises WeightsError where it is none mull reads."""
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return ModelFiles(path.stem, path, "gguf")
        if path.suffix.lower() in _PICKLES:
            raise WeightsError(
                f"{path} may be a pickle, which can run code when read: "
                "mull reads only .safetensors folders and .gguf files; convert it first"
            )
        raise WeightsError(
            f"{path} is not a model: give a .gguf file, or the folder that holds config.json"
        )
    if (path / "config.json").is_file():
        return ModelFiles(path.resolve().name, path, "hf")
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ModelFiles(path.resolve().name, ggufs[0], "gguf")
    if ggufs:
        names = ", ".join(file.name for file in ggufs[:5])
        raise WeightsError(f"{path} holds {len(ggufs)} .gguf files ({names}): name one of them")
    raise WeightsError(f"{path} is not a model: no config.json and no .gguf file in it")


def _not_found(text: str) -> WeightsError:
    if entry := find(text):
        size = f" ({entry.download_bytes / 1e9:.1f} GB)" if entry.download_bytes else ""
        return WeightsError(
            f"model {entry.name} is not on this machine: `mull pull {entry.name}`{size}"
        )
    known = [files.name for files in list_models()] + list(load_catalog())
    near = near_matches(text, list(dict.fromkeys(known)))
    if near:
        return WeightsError(f"no model {text!r}: did you mean {' or '.join(near)}?")
    if text.endswith(".gguf") or text.startswith((".", "/", "~")):
        return WeightsError(f"no such file or folder: {text}")
    hint = f"`mull pull {text}` or " if is_name(text) and "/" in text else ""
    return WeightsError(f"no model {text!r}: {hint}`mull models` lists what there is")


def list_models() -> list[ModelFiles]:
    """Every model that needs no pull: those in the store and those that came with mull."""
    found = _shipped() | {files.name: files for files in pulled_models()}
    return sorted(found.values(), key=lambda files: files.name)


def pulled_models() -> list[ModelFiles]:
    """The models in the store, by name. A damaged one is left out (`resolve` tells why)."""
    home, found = models_home(), []
    for folder in sorted(home.iterdir()) if home.is_dir() else ():
        if folder.is_dir() and not folder.name.startswith("."):
            try:
                found.append(_from_store(folder, check=False))
            except WeightsError:
                continue
    return sorted(found, key=lambda files: files.name)


def remove(name: str) -> int:
    """Delete a model, or what a cut-off pull of it left, from the store; returns the bytes freed.

    Nothing outside the store is touched. Raises WeightsError for a name that is not in it.
    """
    known = next((each for each in (name, name.lower()) if _leavings(each)), None)
    if known is None:
        if name.lower() in _shipped():
            raise WeightsError(f"{name} is part of mull itself and stays with it")
        near = near_matches(name, [files.name for files in list_models()])
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise WeightsError(f"no model {name!r} in {models_home()}{hint}")
    lock = lock_of(known)
    try:
        partial_of(known).parent.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0):
            return sum(_delete(path) for path in _leavings(known))
    except Timeout:
        raise WeightsError(f"a pull of {known} is running: stop it first") from None
    except OSError as error:
        raise WeightsError(f"cannot remove {known}: {error}") from error


def _leavings(name: str) -> list[Path]:
    if not is_name(name):
        return []
    paths = (folder_of(name), partial_of(name), plan_of(name))
    return [path for path in paths if path.exists() or path.is_symlink()]


def _delete(path: Path) -> int:
    if path.is_symlink():  # made by hand: what it points to is not ours
        path.unlink()
        return 0
    if path.is_file():
        size = path.stat().st_size
        path.unlink()
        return size
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    grave = models_home() / PARTIAL / f"{path.name}.removed-{os.getpid()}"
    path.rename(grave)  # first out of sight, so that a half-deleted model is never found
    shutil.rmtree(grave)
    return size
