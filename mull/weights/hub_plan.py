"""What to fetch from a hub: one listing, which fixes the revision, the files and their hashes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mull.errors import MullError, WeightsError
from mull.weights.catalog import HubSource
from mull.weights.manifest import check_relative
from mull.weights.order import Repair, gguf_model, is_folder_file

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_FILES = 4096
_MAX_BYTES = 16 << 40


@dataclass(frozen=True)
class PlannedFile:
    """A file as the hub listed it: `sha256` for large files, `git_sha1` for those kept in git."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class Plan:
    """What the first listing resolved; kept beside the partial files, and later runs hold to it."""

    repository: str
    asked_revision: str | None
    select: str | None
    revision: str
    licence: str | None
    files: tuple[PlannedFile, ...]

    def answers(self, source: HubSource) -> bool:
        asked = (source.repository, source.revision, source.select)
        return asked == (self.repository, self.asked_revision, self.select)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def plan_of_repair(source: HubSource, repair: Repair) -> Plan:
    """The damaged files of a pulled model, at the revision and with the hashes of its manifest."""
    if repair.held.revision is None:
        raise WeightsError(f"the manifest of {repair.held.name} holds no revision: pull it anew")
    known = repair.held.by_path()
    files = tuple(PlannedFile(path, known[path].size, known[path].sha256) for path in repair.paths)
    return Plan(
        repository=source.repository,
        asked_revision=source.revision,
        select=source.select,
        revision=repair.held.revision,
        licence=None,
        files=files,
    )


def read_plan(path: Path, source: HubSource) -> Plan | None:
    """The plan of a pull that was cut off, if it was for this source; a damaged one is no plan."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(PlannedFile(**item) for item in raw.pop("files"))
        plan = Plan(**raw, files=files)
        for file in files:
            check_relative(file.path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, MullError):
        return None
    return plan if plan.answers(source) and _COMMIT.fullmatch(plan.revision) else None


def without_password(text: str) -> str:
    """`text` without the user and password that addresses in it may hold (HF_ENDPOINT's)."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def list_repository(source: HubSource, endpoint: str) -> Plan:
    """Ask the hub what there is. Raises WeightsError for names or sizes no model has."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint, library_name="mull").model_info(
        source.repository, revision=source.revision, files_metadata=True
    )
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        where = without_password(endpoint)
        raise WeightsError(f"{where} gave no commit for {source.repository}: refused")
    siblings = info.siblings or []
    for sibling in siblings:
        check_relative(sibling.rfilename)
    wanted = set(_choose([sibling.rfilename for sibling in siblings], source))
    files = [_planned(sibling) for sibling in siblings if sibling.rfilename in wanted]
    files.sort(key=lambda file: (file.size, file.path))  # a wrong config.json is seen first
    if len(files) > _MAX_FILES or sum(file.size for file in files) > _MAX_BYTES:
        raise WeightsError(f"{source.repository} lists more than any model has: refused")
    licences = [tag[8:] for tag in info.tags or [] if tag.startswith("license:")]
    return Plan(
        repository=source.repository,
        asked_revision=source.revision,
        select=source.select,
        revision=info.sha,
        licence=licences[0] if licences else None,
        files=tuple(files),
    )


def _planned(sibling: Any) -> PlannedFile:
    lfs = sibling.lfs
    size = lfs.size if lfs is not None else sibling.size
    if not isinstance(size, int) or size < 0:
        raise WeightsError(f"the hub gave no size for {sibling.rfilename}: refused")
    if lfs is not None:
        return PlannedFile(sibling.rfilename, size, sha256=lfs.sha256)
    return PlannedFile(sibling.rfilename, size, git_sha1=sibling.blob_id)


def _choose(paths: list[str], source: HubSource) -> list[str]:
    """The files to fetch: a Hugging Face folder, or one GGUF model (which may be in parts)."""
    if len(set(paths)) != len(paths):
        raise WeightsError(f"{source.repository} lists a file twice: refused")
    folder = [path for path in paths if is_folder_file(path)]
    if source.select is None and any(path.endswith(".safetensors") for path in folder):
        return folder
    ggufs = [path for path in paths if path.endswith(".gguf")]
    every = sorted({gguf_model(path) for path in ggufs})
    models = every if source.select is None else _selected(every, source.select)
    if len(models) == 1:
        return [path for path in ggufs if gguf_model(path) in models]
    if not every:
        raise WeightsError(
            f"{source.repository} holds no .safetensors and no .gguf file; "
            "mull reads nothing else (never a pickle): look for a converted repository"
        )
    offered = ", ".join((models or every)[:12])
    raise WeightsError(
        f"{source.repository} holds several GGUF models: name one, as in "
        f"`mull pull {source.repository}:Q4_K_M`; there are {offered}"
    )


def _selected(models: list[str], select: str) -> list[str]:
    """The models that `select` means: the one of this name, else those whose name ends so, else
    those that have it anywhere in their name."""
    mark = re.escape(gguf_model(select.removesuffix(".gguf") + ".gguf").removesuffix(".gguf"))
    ending = rf"(?:.*[-._/])?{mark}"
    for form in (mark, f"(?:.*/)?{mark}", ending, rf"{ending}(?:[-._/].*)?"):
        pattern = re.compile(rf"{form}\.gguf", re.IGNORECASE)
        if found := [model for model in models if pattern.fullmatch(model)]:
            return found
    return []
