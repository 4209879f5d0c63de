"""Model files: get them, keep them, read them, write them.

Public names load their module when first used, so that importing the room costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mull.weights.catalog import CatalogEntry, load_catalog
    from mull.weights.description import describe, verify
    from mull.weights.files import ModelFiles
    from mull.weights.gguf_export import export_gguf, save_gguf
    from mull.weights.loader import (
        empty_model,
        holds_mtp,
        lay_out,
        load_config,
        load_model,
        tokenizer_source,
    )
    from mull.weights.memory import available_memory, fits, refuse_unless_fits, weight_bytes
    from mull.weights.opened import OpenedModel
    from mull.weights.packed import PackedFile
    from mull.weights.packed_place import packed_bytes, remove_packed
    from mull.weights.precision import auto_precision
    from mull.weights.pulling import pull
    from mull.weights.save import save_folder
    from mull.weights.store import (
        is_shipped,
        list_models,
        models_home,
        pulled_models,
        remove,
        resolve,
    )

# No public name may equal a module of this folder: the import would put the module in its place.
_HOME = {
    "CatalogEntry": "catalog",
    "load_catalog": "catalog",
    "describe": "description",
    "verify": "description",
    "ModelFiles": "files",
    "export_gguf": "gguf_export",
    "save_gguf": "gguf_export",
    "empty_model": "loader",
    "holds_mtp": "loader",
    "lay_out": "loader",
    "load_config": "loader",
    "load_model": "loader",
    "tokenizer_source": "loader",
    "auto_precision": "precision",
    "available_memory": "memory",
    "fits": "memory",
    "refuse_unless_fits": "memory",
    "weight_bytes": "memory",
    "OpenedModel": "opened",
    "PackedFile": "packed",
    "packed_bytes": "packed_place",
    "remove_packed": "packed_place",
    "pull": "pulling",
    "save_folder": "save",
    "is_shipped": "store",
    "list_models": "store",
    "pulled_models": "store",
    "models_home": "store",
    "remove": "store",
    "resolve": "store",
}
__all__ = [
    "CatalogEntry",
    "ModelFiles",
    "OpenedModel",
    "PackedFile",
    "auto_precision",
    "available_memory",
    "describe",
    "empty_model",
    "export_gguf",
    "fits",
    "holds_mtp",
    "is_shipped",
    "lay_out",
    "list_models",
    "load_catalog",
    "load_config",
    "load_model",
    "models_home",
    "packed_bytes",
    "pull",
    "pulled_models",
    "refuse_unless_fits",
    "remove",
    "remove_packed",
    "resolve",
    "save_folder",
    "save_gguf",
    "tokenizer_source",
    "verify",
    "weight_bytes",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mull.weights.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mull.weights' has no attribute {name!r}")
