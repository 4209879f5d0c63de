"""Problems with checkable answers, and verifiers that cannot hang or be fooled."""

from mull.tasks.mixture import Mixture
from mull.tasks.pool import TaskSpec, VerifierPool
from mull.tasks.registry import load_task
from mull.tasks.task import Problem, Split, Task, Verdict, split_of
from mull.tasks.verify import final_answer

__all__ = [
    "Mixture",
    "Problem",
    "Split",
    "Task",
    "TaskSpec",
    "Verdict",
    "VerifierPool",
    "final_answer",
    "load_task",
    "split_of",
]
