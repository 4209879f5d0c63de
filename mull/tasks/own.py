"""A user's own task: a Python file that makes problems, or a JSONL file that lists them.

The shortest Python file that works::

    def make_problem(rng):          # rng: random.Random; every choice comes from it
        a, b = rng.randrange(100), rng.randrange(100)
        return f"What is {a} + {b}?", str(a + b)        # and, if you like, steps as the third

It may also define `verify(problem, text)`, True if text answers the problem; without it the final
answer (`mull.tasks.final_answer`) has to equal the problem's. A JSONL file has a line per problem:
{"question": "...", "answer": "..."}, with "steps" if you like. Questions with one `split_key` (the
fourth of the tuple; steps may be None) belong to one split, however they are worded.
"""

from __future__ import annotations

import json
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mull.errors import TaskError
from mull.tasks.task import Problem, Split, Verdict
from mull.tasks.verify import judge

_MAX_DRAWS = 10_000
_TUPLE = "a tuple (question, answer), (question, answer, steps) or these and a split_key"


class PythonTask:
    """Problems made by a user's file; it runs by his choice, on his machine, as his program."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._path = Path(path)
        module = _run(self._path)
        self._make = _function(module, self._path, "make_problem")
        if self._make is None:
            raise TaskError(
                f"{path} defines no make_problem(rng); add a function that returns {_TUPLE}"
            )
        self._verify = _function(module, self._path, "verify")

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"{self._path.name}/{split}/{seed}")
        misses = 0
        while misses < _MAX_DRAWS:
            problem = self._problem(rng)
            if problem.split == split:
                misses = 0
                yield problem
            else:
                misses += 1
        raise TaskError(
            f"{self._path}: make_problem gave no question of the {split} split in {_MAX_DRAWS} "
            "calls; let it make more different questions"
        )

    def verify(self, problem: Problem, text: str) -> Verdict:
        if self._verify is None:
            return judge(text, problem.answer)
        if not text.strip():
            return Verdict.UNPARSABLE
        found = self._verify(problem, text)
        if isinstance(found, Verdict):
            return found
        if not isinstance(found, bool):
            raise TaskError(f"{self._path}: verify must return True or False, not {found!r:.80}")
        return Verdict.CORRECT if found else Verdict.WRONG

    def _problem(self, rng: random.Random) -> Problem:
        assert self._make is not None
        try:
            made = self._make(rng)
        except Exception as error:
            raise TaskError(
                f"{_place(self._path, error)}: make_problem failed: {error!r}"
            ) from error
        if not isinstance(made, tuple) or len(made) not in (2, 3, 4):
            raise TaskError(f"{self._path}: make_problem must return {_TUPLE}, not {made!r:.80}")
        fields = dict(zip(("question", "answer", "steps", "split_key"), made, strict=False))
        return _checked(fields, self.name, f"{self._path}: make_problem")


class JsonlTask:
    """The problems of a file, in the order of the seed; every one belongs to one split."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._problems = _read_lines(Path(path))

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        chosen = [problem for problem in self._problems if problem.split == split]
        if not chosen:
            raise TaskError(
                f"{self.name}: none of its {len(self._problems)} questions falls into the {split} "
                "split (of 20 questions 17 are for training, 1 for validation, 2 for tests); "
                "add questions"
            )
        random.Random(f"{split}/{seed}").shuffle(chosen)
        yield from chosen

    def verify(self, problem: Problem, text: str) -> Verdict:
        return judge(text, problem.answer)


def load_own_task(path: str, settings: Mapping[str, Any]) -> PythonTask | JsonlTask:
    """The task of a .py or .jsonl file. Raises TaskError saying file, line and how to mend it."""
    if settings:
        raise TaskError(
            f"{path}: a task of your own has no settings; found {next(iter(settings))!r}"
        )
    if not Path(path).is_file():
        raise TaskError(f"{path}: no such file; give the path of a .py or .jsonl file")
    return PythonTask(path) if path.endswith(".py") else JsonlTask(path)


def _run(path: Path) -> ModuleType:
    """The file as a module of its own name, so that it may sit anywhere."""
    module = ModuleType(f"mull_task_{path.stem}")
    module.__file__ = str(path)
    try:
        source = path.read_bytes()
        sys.modules[module.__name__] = module  # dataclasses of the file look themselves up there
        exec(compile(source, str(path), "exec"), module.__dict__)
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}") from error
    except SyntaxError as error:
        raise TaskError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise TaskError(f"{_place(path, error)}: {error!r}") from error
    return module


def _function(module: ModuleType, path: Path, name: str) -> Callable[..., Any] | None:
    found = getattr(module, name, None)
    if found is not None and not callable(found):
        raise TaskError(f"{path}: {name} must be a function")
    return found


def _place(path: Path, error: Exception) -> str:
    """File and line of the user's code in which error arose."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _read_lines(path: Path) -> list[Problem]:
    try:
        # Bytes, for a line of JSON ends at a newline alone: what else may look like one is text.
        lines = path.read_bytes().decode().split("\n")
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    problems: dict[str, Problem] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            problem = _read_line(line, path, number)
            known = problems.setdefault(problem.question, problem)
            if known.answer != problem.answer:
                raise TaskError(f"{path}, line {number}: asked before, with another answer")
    if not problems:
        raise TaskError(
            f'{path} holds no problems; it needs lines like {{"question": "...", "answer": "..."}}'
        )
    return list(problems.values())


def _read_line(line: str, path: Path, number: int) -> Problem:
    place = f"{path}, line {number}"
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{place}: not a JSON object: {error}") from error
    if not isinstance(fields, dict):
        raise TaskError(f'{place}: needs an object {{"question": "...", "answer": "..."}}')
    return _checked(fields, str(path), place)


def _checked(fields: Mapping[str, Any], family: str, place: str) -> Problem:
    """A problem whose question and answer are texts that are not empty; numbers become texts."""
    texts = {}
    for name in ("question", "answer"):
        value = fields.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise TaskError(f"{place}: {name} must be a text that is not empty, not {value!r:.80}")
        texts[name] = value
    steps, split_key = (fields.get(name) for name in ("steps", "split_key"))
    for name, value in (("steps", steps), ("split_key", split_key)):
        if value is not None and not isinstance(value, str):
            raise TaskError(f"{place}: {name} must be a text, not {value!r:.80}")
    return Problem(texts["question"], texts["answer"], family, steps=steps, split_key=split_key)
