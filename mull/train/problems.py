"""A recipe's tasks: their problems as an endless row of questions, and verdicts on answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from mull.errors import TaskError
from mull.tasks import Mixture, Problem, Task, TaskSpec, Verdict, VerifierPool, load_task
from mull.train import recipe_parts as parts
from mull.train.recipe import Recipe
from mull.train.seeds import narrow_seed_of


class Tasks:
    """The tasks of a recipe by name, loaded, and how a verifier's process loads them again.

    Raises TaskError for a task that cannot be had.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.by_name: dict[str, Task] = {}
        self._verifiers: dict[str, dict[str, TaskSpec]] = {}
        for name, spec in recipe.tasks.items():
            self.by_name[name], self._verifiers[name] = _loaded(spec)

    def __getitem__(self, name: str) -> Task:
        return self.by_name[name]

    def verifier(self, task: str, problem: Problem) -> TaskSpec:
        return self._verifiers[task][problem.family]

    def parts(self, task: str) -> list[Task]:
        """Those that a mixture is made of, or the task itself."""
        whole = self.by_name[task]
        return [part for part, _ in whole.parts] if isinstance(whole, Mixture) else [whole]

    def levels(self, task: str) -> dict[str, tuple[int, int] | None]:
        """Lowest and highest level of each family; None where it has none."""
        return {part.name: getattr(part, "levels", None) for part in self.parts(task)}

    def verdicts(
        self, pool: VerifierPool, task: str, answers: Sequence[tuple[Problem, str]]
    ) -> list[Verdict]:
        """answers: each with what was said after the thinking."""
        items = [(self.verifier(task, problem), problem, text) for problem, text in answers]
        return pool.verify_all(items) if items else []


class Questions:
    """A task's training problems one after another, from the beginning again where they end.

    position: how many were taken, which is all that a checkpoint has to know. Raises TaskError
    where there are none.
    """

    def __init__(self, task: Task, *seed_parts: object, position: int = 0) -> None:
        self._task = task
        self._seed_parts = seed_parts
        self._row = self._endless()
        self.position = 0
        self.take(position)

    def take(self, count: int) -> list[Problem]:
        self.position += count
        return list(islice(self._row, count))

    def _endless(self) -> Iterator[Problem]:
        epoch = 0
        while True:
            found = False
            for problem in self._task.problems("train", narrow_seed_of(*self._seed_parts, epoch)):
                found = True
                yield problem
            if not found:
                raise TaskError(f"task {self._task.name} has no problems to train on")
            epoch += 1


def _loaded(spec: parts.TaskSpec) -> tuple[Task, dict[str, TaskSpec]]:
    """The task, and by family what its verifier is made of."""
    if spec.file is not None:
        path = str(spec.file)
        return load_task(path), {path: TaskSpec(path)}
    parts: list[tuple[Task, float]] = []
    verifiers: dict[str, TaskSpec] = {}
    for name, family in spec.families.items():
        settings = _settings(family)
        task = load_task(name, **settings)
        parts.append((task, family.weight))
        verifiers[task.name] = TaskSpec(name, settings)
    return Mixture(parts), verifiers


def _settings(family: parts.FamilySpec) -> Mapping[str, object]:
    levels = {} if family.levels is None else {"levels": list(family.levels)}
    return {**levels, **family.settings}
