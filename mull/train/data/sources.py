"""A recipe's sources of data as documents of token ids, and as text for a fresh tokenizer.

Keys name what a shard was made from, down to the content of files and the problems of a task, so
that nothing stale is ever used again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from mull.errors import RecipeError, TextError
from mull.tasks.task import Split, Task
from mull.train.batch import Example
from mull.train.data.readers import (
    KeptAnswer,
    chats,
    kept_answers,
    parquet_texts,
    text_blocks,
)
from mull.train.data.tokenizer import SAMPLE_CHARACTERS
from mull.train.data.traces import traces
from mull.train.data.writer import TraceWriter
from mull.train.recipe import Recipe
from mull.train.recipe_parts import DataSpec
from mull.train.recipe_stages import LearnStage

# A task's code is no part of its name: its first problems are.
_PROBED = 256
_PROBE = "The 12 boys' 3.5 apples\n\n  cost £7 — naïve, 你好 = 'x'."


def files_of(spec: DataSpec, kept: Mapping[str, Path]) -> tuple[Path, ...]:
    """The files a source reads; none for task-made traces."""
    if spec.stage is not None:
        if spec.stage not in kept:
            raise RecipeError(
                f"data.stage names {spec.stage}, which keeps no answers; name a reject stage"
            )
        return (kept[spec.stage],)
    return (*spec.text, *spec.chat, *spec.parquet)


def name_of(spec: DataSpec) -> str:
    """What to call a source in reports and complaints."""
    if spec.task is not None:
        return f"task {spec.task}"
    if spec.stage is not None:
        return f"stage {spec.stage}"
    paths = (*spec.text, *spec.chat, *spec.parquet)
    return paths[0].name + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def file_documents(
    spec: DataSpec, kept: Mapping[str, Path], writer: TraceWriter, counts: Counter[str]
) -> Iterator[Example]:
    """Every document of a source of files; what is left out is counted."""
    for path in files_of(spec, kept):
        if spec.stage is not None:
            for answer in kept_answers(path):
                yield _kept(answer, writer, counts)
        elif spec.chat:
            for chat in chats(path):
                try:
                    yield from writer.chat(chat.messages)
                except TextError as error:
                    raise RecipeError(f"{chat.where}: {error}") from None
        else:
            texts = text_blocks(path) if spec.text else parquet_texts(path, spec.column)
            for text in texts:
                if text is None:
                    counts["rows without text"] += 1
                else:
                    yield _all_learnt(writer.document(text))


def task_documents(
    spec: DataSpec, task: Task, split: Split, seed: int, writer: TraceWriter
) -> Iterator[Example]:
    """A trace of every problem of the task, endless where the task is."""
    for _, trace in traces(task, split, seed, spec.forms):
        yield writer.trace(trace)


def opens_thinking(spec: DataSpec, task: Task | None, seed: int, writer: TraceWriter) -> bool:
    """Whether some of the source follows a prompt that opens the thinking: what a stage kept does,
    a chat where it has a thinking, of a task what its first traces do."""
    if task is not None:
        first = itertools.islice(traces(task, "train", seed, spec.forms), _PROBED)
        return any(trace.prompt == "open" for _, trace in first)
    if spec.chat:
        every = (chat for path in spec.chat for chat in chats(path))
        return any(writer.has_thinking(chat.messages) for chat in every)
    return spec.stage is not None


def file_key(spec: DataSpec, kept: Mapping[str, Path], writer: TraceWriter) -> str:
    """Names the shard of a source of files: which files, read how, by which tokenizer."""
    contents = [_file_hash(path) for path in files_of(spec, kept)]
    kind = "stage" if spec.stage else "chat" if spec.chat else "text" if spec.text else spec.column
    return _key("files", kind, contents, fingerprint(writer))


def task_key(
    spec: DataSpec,
    recipe: Recipe,
    task: Task,
    split: Split,
    seed: int,
    writer: TraceWriter,
    most_tokens: int,
) -> str:
    """Names the shard of task-made traces: the task's settings and file, and its first traces."""
    assert spec.task is not None
    settings = recipe.tasks[spec.task]
    content = _file_hash(settings.file) if settings.file is not None else ""
    probe = itertools.islice(task_documents(spec, task, split, seed, writer), _PROBED)
    first = [[list(example.ids), list(example.learn)] for example in probe]
    return _key(
        "task", settings.model_dump(mode="json"), content, spec.forms, split, seed, most_tokens,
        fingerprint(writer), first,
    )  # fmt: skip


def fingerprint(writer: TraceWriter) -> str:
    """Of everything that decides which ids a text becomes."""
    tokenizer = writer.tokenizer
    texts = hashlib.sha256("\0".join(tokenizer.vocabulary.texts).encode()).hexdigest()
    ends = [writer.turn_end, writer.document_end]
    question = writer.prompt(_PROBE, thinking=True), writer.prompt(_PROBE, thinking=False)
    return _key(texts, ends, question, tokenizer.encode(_PROBE))


def sample_texts(
    recipe: Recipe, tasks: Mapping[str, Task], most: int = SAMPLE_CHARACTERS
) -> Iterator[str]:
    """Text to make the recipe's tokenizer from: as much of each source as of the others."""
    specs = [
        spec.model_copy(update={"forms": {}, "weight": 1.0})
        for stage in recipe.stages
        if isinstance(stage, LearnStage)
        for spec in stage.data
        if spec.stage is None
    ]
    unlike = [spec for index, spec in enumerate(specs) if spec not in specs[:index]]
    for spec in unlike:
        left = most // len(unlike)
        for text in _texts(spec, tasks, recipe.seed):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


def _texts(spec: DataSpec, tasks: Mapping[str, Task], seed: int) -> Iterator[str]:
    if spec.task is not None:
        for problem in tasks[spec.task].problems("train", seed):
            # The blank line stands between thinking and answer in every trace.
            yield from (problem.question, problem.steps or "", "\n\n", problem.answer)
    for path in spec.text:
        yield from text_blocks(path)
    for path in spec.parquet:
        yield from (text for text in parquet_texts(path, spec.column) if text is not None)
    for path in spec.chat:
        for chat in chats(path):
            for message in chat.messages:
                parts = (message.get(name) for name in ("reasoning_content", "content"))
                yield from (part for part in parts if isinstance(part, str))


def _kept(kept: KeptAnswer, writer: TraceWriter, counts: Counter[str]) -> Example:
    prompt = writer.prompt(kept.question, thinking=True)
    said = writer.answer(kept.thinking, kept.answer)
    if kept.ids is not None:
        sampled = list(kept.ids)
        if sampled[-1] not in writer.tokenizer.eos_ids:
            sampled.append(writer.turn_end)
        # Ids of another vocabulary (a teacher's) say something else here.
        if _is_same_text(sampled, said, writer):
            said = sampled
        else:
            counts["answers encoded anew"] += 1
    return Example([*prompt, *said], [False] * len(prompt) + [True] * len(said))


def _is_same_text(sampled: list[int], said: list[int], writer: TraceWriter) -> bool:
    tokenizer = writer.tokenizer
    if not all(0 <= token < tokenizer.vocab_size for token in sampled):
        return False
    texts = (tokenizer.decode(ids, skip_special=True) for ids in (sampled, said))
    one, other = ("".join(text.split()) for text in texts)
    return one == other


def _all_learnt(ids: list[int]) -> Example:
    return Example(ids, [False] + [True] * (len(ids) - 1))


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror or error})") from None


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
