"""The packed files of a model: writing one, whole or not at all, and filling a skeleton from it.

One file for each precision, written once after packing. A file that is not exactly what is wanted
is told of in one line and written anew.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor, nn

from mull.kernels.layout import LAYOUT_VERSION
from mull.weights import store
from mull.weights.files import ModelFiles
from mull.weights.order import in_gb
from mull.weights.packed_file import PackedFileError, layout_of, read_packed, write_packed
from mull.weights.packed_place import claim_folder, packed_folder, source_of

_log = logging.getLogger(__name__)


class PackedFile:
    """The packed file of one model at one precision; it need not exist."""

    def __init__(self, files: ModelFiles, precision: str) -> None:
        self.files = files
        self.path = packed_folder(files) / f"{precision}.safetensors"
        self.metadata = {
            "format": "mull packed weights",
            "layout": str(LAYOUT_VERSION),
            "precision": precision,
            "source": json.dumps(source_of(files)),
        }

    def exists(self) -> bool:
        return self.path.is_file()

    def fill(self, skeleton: nn.Module) -> bool:
        """Put the file's tensors into a prepared skeleton; False, and a line, where they are not
        what belongs there."""
        try:
            found = read_packed(self.path, own_tensors(skeleton), self.metadata)
        except PackedFileError as error:
            _log.warning("mull: %s %s: packing the weights again", self.path, str(error))
            return False
        except OSError as error:
            _log.warning("mull: %s cannot be read (%s): packing again", self.path, error.strerror)
            return False
        for name, tensor in found.items():
            _place(skeleton, name, tensor)
        return True

    def write(self, model: nn.Module) -> bool:
        """Keep the tensors of a filled model, whole or not at all; False, and a line, where it
        cannot be done, or where somebody else is doing it."""
        folder, partial = self.path.parent, self.path.with_suffix(".partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock")).acquire(timeout=0):
                self._write(partial, own_tensors(model))
        except Timeout:
            return False
        except OSError as error:
            _log.warning(
                "mull: the packed weights are not kept (%s: %s), so the next start packs them "
                "again: make room there, or set MULL_HOME",
                folder,
                error.strerror or error,
            )
            return False
        return True

    def _write(self, partial: Path, tensors: Mapping[str, Tensor]) -> None:
        needed = layout_of(tensors, self.metadata).size
        free = shutil.disk_usage(partial.parent).free
        if free < needed + (needed >> 4):
            raise OSError(f"{in_gb(needed)} are needed and {in_gb(free)} free")
        if not self.path.is_relative_to(store.models_home()):
            claim_folder(self.files)
        try:
            with partial.open("wb") as file:
                write_packed(file, tensors, self.metadata)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, though modules may share it."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    is_parameter = leaf in owner._parameters
    setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
