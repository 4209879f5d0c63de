"""Model files: get them, keep them, read them, write them. Names load their module when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mull.weights.catalog import CatalogEntry, load_catalog
    from mull.weights.files import ModelFiles
    from mull.weights.loader import load_config, load_model, tokenizer_source
    from mull.weights.pulling import pull
    from mull.weights.save import save_folder
    from mull.weights.store import list_models, models_home, remove, resolve

# No public name may equal a module of this folder: the import would put the module in its place.
_HOME = {
    "CatalogEntry": "catalog",
    "load_catalog": "catalog",
    "ModelFiles": "files",
    "load_config": "loader",
    "load_model": "loader",
    "tokenizer_source": "loader",
    "pull": "pulling",
    "save_folder": "save",
    "list_models": "store",
    "models_home": "store",
    "remove": "store",
    "resolve": "store",
}
__all__ = [
    "CatalogEntry",
    "ModelFiles",
    "list_models",
    "load_catalog",
    "load_config",
    "load_model",
    "models_home",
    "pull",
    "remove",
    "resolve",
    "save_folder",
    "tokenizer_source",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mull.weights.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mull.weights' has no attribute {name!r}")
