"""mull: your own DeepSeek, from weights to words on the hardware you have.

Nothing heavy is imported until it is used, so that `mull --help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mull.errors import (
    KernelError,
    ModelError,
    MullError,
    QueueFullError,
    RecipeError,
    RequestError,
    TaskError,
    TextError,
    TrainError,
    WeightsError,
)

if TYPE_CHECKING:
    from mull.llm import LLM, Answer, Event, load

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Answer",
    "Event",
    "KernelError",
    "ModelError",
    "MullError",
    "QueueFullError",
    "RecipeError",
    "RequestError",
    "TaskError",
    "TextError",
    "TrainError",
    "WeightsError",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in {"LLM", "Answer", "Event", "load"}:
        from mull import llm

        return getattr(llm, name)
    raise AttributeError(f"module 'mull' has no attribute {name!r}")
