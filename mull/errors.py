"""Every error mull raises on purpose: one class per room, one readable line per error.

A message says what is wrong, where, and how to mend it; the command line prints it and exits
with 2.
"""


def shown(value: object) -> str:
    """A value as it may stand in such a message: short, whatever it is."""
    # repr() of a deeply nested list or of a 5,000-digit integer raises on its own account.
    if isinstance(value, int) and value.bit_length() > 128:
        return "an enormous integer"
    if value is None or isinstance(value, int | float | str):
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "..."
    return "a " + type(value).__name__


class MullError(Exception):
    """Base of all errors a caller can expect from mull."""


class WeightsError(MullError):
    """A model file or folder is missing, damaged, too large, or not what it claims to be."""


class ModelError(MullError):
    """A configuration that no model here can be built from."""


class TextError(MullError):
    """A tokenizer or chat template that is absent, damaged or refuses its input."""


class RequestError(MullError):
    """A request that cannot be served as asked: bad sampling values, too long a prompt."""


class QueueFullError(RequestError):
    """The bounded queue of waiting requests is full; try again later."""


class TaskError(MullError):
    """A task that cannot be had: unknown name, unreadable file, no checkable answers."""


class RecipeError(MullError):
    """A recipe that cannot be run as written: unknown key, impossible size, missing file."""


class TrainError(MullError):
    """Training that cannot go on: damaged checkpoint, changed recipe, NaN loss, full disk."""


class TrainFailedError(TrainError):
    """Training that ended midway (NaN loss, full disk); its last whole checkpoint is kept."""


class KernelError(MullError):
    """A kernel was asked for that this machine or build does not have."""


class StoreError(MullError):
    """The database of conversations cannot be used: damaged, read-only, made by a newer mull."""


class StoreBusyError(StoreError):
    """It is locked, or cannot be reached just now; nothing was written, try again."""


class StoreFullError(StoreError):
    """The disk is full; nothing was written, and nothing is lost."""
