"""Problems with checkable answers, and verifiers that cannot hang or be fooled."""

from mull.tasks.mixture import Mixture
from mull.tasks.registry import load_task
from mull.tasks.task import Problem, Split, Task, Verdict, split_of

__all__ = ["Mixture", "Problem", "Split", "Task", "Verdict", "load_task", "split_of"]
