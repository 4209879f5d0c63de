"""Several tasks as one, each drawn by its weight."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from mull.errors import TaskError
from mull.tasks.task import Problem, Split, Task, Verdict


class Mixture:
    """parts: tasks and how often each is drawn relative to the others.

    In the train split a task with a limited number of problems starts over when they are through;
    in the other splits each of its problems comes once.
    """

    name = "mixture"

    def __init__(self, parts: Sequence[tuple[Task, float]]) -> None:
        if not parts or not all(0 < weight < float("inf") for _, weight in parts):
            raise TaskError("a mixture needs at least one task, and weights above 0")
        self.parts = tuple(parts)
        # Problems carry the name of the task they are from; tasks of one name verify alike.
        self._by_name = {task.name: task for task, _ in parts}

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"mixture/{split}/{seed}")
        sources = [
            _problems_of(task, split, seed * len(self.parts) + index)
            for index, (task, _) in enumerate(self.parts)
        ]
        weights = [weight for _, weight in self.parts]
        while sources:
            index = rng.choices(range(len(sources)), weights)[0]
            try:
                yield next(sources[index])
            except StopIteration:
                del sources[index], weights[index]

    def verify(self, problem: Problem, text: str) -> Verdict:
        return self.task_of(problem).verify(problem, text)

    def task_of(self, problem: Problem) -> Task:
        try:
            return self._by_name[problem.family]
        except KeyError:
            raise TaskError(f"no task of this mixture made a problem of {problem.family}") from None


def _problems_of(task: Task, split: Split, seed: int) -> Iterator[Problem]:
    while True:
        count = 0
        for problem in task.problems(split, seed):
            count += 1
            yield problem
        if split != "train" or not count:
            return
