"""reasoning-gym's datasets as tasks, in their own words, with exact verdicts.

The package is imported only when such a task is loaded; it brings much along.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mull.errors import TaskError
from mull.tasks.gym_rules import REFUSED, judge_gym, needs_entry, reference_answer
from mull.tasks.gym_steps import STEPS
from mull.tasks.registry import nearest
from mull.tasks.task import Problem, Split, Verdict

_PREFIX = "reasoning-gym:"
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# Item i of a dataset is made by Random(seed + i): seeds this far apart share no item.
_SEED_SPACING = 1 << 40
# numpy's older generator, which pool_matrix uses, takes 32 bits.
_NARROW_SEEDS = {"pool_matrix"}
_NARROW_SPACING = 1 << 22
# The first level of this curriculum is one that its own dataset refuses.
_MENDED_LEVELS = {"knight_swap": {"min_nodes": 6, "max_nodes": 6}}
# Some datasets prepare all their items at once, or allow no more.
_ITEMS_AT_A_TIME = 1_000
_MAX_DRAWS = 3_000


class GymTask:
    """One dataset of reasoning-gym. settings: fields of its configuration, and `easiest`: start
    from the first level of its curriculum instead of its defaults.

    The same split and seed give the same problems, except that isomorphic_strings, knight_swap,
    polynomial_multiplication, ransom_note and word_ladder walk through Python sets: theirs repeat
    in another process only under the same PYTHONHASHSEED.
    """

    def __init__(self, dataset: str, settings: Mapping[str, Any]) -> None:
        self.name = f"{_PREFIX}{dataset}"
        self._dataset = dataset
        self._settings = _configuration(dataset, settings)
        self._scorer = self._create(seed=0).score_answer

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """Endless, unless the dataset comes to an end."""
        misses = 0
        first = self._first_seed(split, seed)
        start = 0
        while True:
            items = self._create(first + start)
            start += _ITEMS_AT_A_TIME
            for index in range(_ITEMS_AT_A_TIME):
                try:
                    entry = items[index]
                except IndexError:
                    break
                problem = self._problem(entry)
                if problem is not None and problem.split == split:
                    misses = 0
                    yield problem
                    continue
                misses += 1
                if misses > _MAX_DRAWS:
                    raise TaskError(f"task {self.name}: no more questions in the {split} split")

    def verify(self, problem: Problem, text: str) -> Verdict:
        return judge_gym(self._dataset, problem, text, self._scorer)

    def _problem(self, entry: Mapping[str, Any]) -> Problem | None:
        """None for the few entries whose right answer would be no answer."""
        has_scorer = needs_entry(self._dataset)
        if not entry["answer"] and not has_scorer:
            return None
        answer = reference_answer(self._dataset, entry["answer"] or "")
        steps = STEPS[self._dataset](entry) if self._dataset in STEPS else None
        if steps is not None and steps.rpartition("\n")[2] != answer:
            steps = f"{steps}\n{answer}" if steps else answer
        data = {"entry": {"answer": entry["answer"], "metadata": entry["metadata"]}}
        return Problem(entry["question"], answer, self.name, 0, steps, data if has_scorer else {})

    def _first_seed(self, split: Split, seed: int) -> int:
        spacing = _NARROW_SPACING if self._dataset in _NARROW_SEEDS else _SEED_SPACING
        first = (seed * len(_SPLITS) + _SPLITS.index(split)) * spacing
        return first % (1 << 32) if self._dataset in _NARROW_SEEDS else first

    def _create(self, seed: int) -> Any:
        import reasoning_gym

        try:
            return reasoning_gym.create_dataset(
                self._dataset, **self._settings, seed=seed, size=_ITEMS_AT_A_TIME
            )
        except (AssertionError, TypeError, ValueError) as error:
            raise TaskError(f"task {self.name}: reasoning-gym refuses: {error}") from error


def load_gym_task(dataset: str, settings: Mapping[str, Any]) -> GymTask:
    """The task of that dataset; TaskError if there is none or it cannot be judged."""
    from reasoning_gym.factory import DATASETS

    if dataset not in DATASETS:
        raise TaskError(
            f"reasoning-gym has no dataset {dataset!r}{nearest(dataset, list(DATASETS))}"
        )
    if dataset in REFUSED:
        raise TaskError(f"reasoning-gym's {dataset} cannot be a task: {REFUSED[dataset]}")
    return GymTask(dataset, settings)


def gym_datasets() -> list[str]:
    """The datasets that can be tasks."""
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - set(REFUSED))


def _configuration(dataset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the dataset's configuration that are not left at their defaults."""
    from reasoning_gym.factory import CURRICULA, DATASETS, create_curriculum

    fields = {field.name for field in dataclasses.fields(DATASETS[dataset][1])} - {"seed", "size"}
    chosen = dict(settings)
    easiest = chosen.pop("easiest", False)
    for setting in chosen:
        if setting not in fields:
            known = ["easiest", *sorted(fields)]
            raise TaskError(
                f"task {_PREFIX}{dataset}: no setting {setting!r}{nearest(setting, known)}; "
                f"it takes {', '.join(known)}"
            )
    if easiest and dataset in CURRICULA:
        easy = create_curriculum(dataset).generate_configuration()
        level = {field: getattr(easy, field) for field in fields}
        chosen = level | _MENDED_LEVELS.get(dataset, {}) | chosen
    return chosen
