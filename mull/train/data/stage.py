"""The data of one stage: its sources made into shards, once, and mixed.

Shards are made before the first step, so that a step finds its tokens ready; a stage that runs
again, or resumes, finds the shards it left.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mull.errors import RecipeError
from mull.tasks.task import Split, Task
from mull.train.data import sources
from mull.train.data.mix import DataMix, Part, Source
from mull.train.data.shards import Shard, make_shard
from mull.train.data.writer import TraceWriter
from mull.train.recipe import Recipe
from mull.train.recipe_parts import DataSpec
from mull.train.recipe_stages import LearnStage, Pretrain

# More traces of a task than this are made only by going through them again in another order: at
# 8 million tokens a small model cannot know them by heart, and making them takes half a minute.
MOST_TASK_TOKENS = 1 << 23
# Of a task's own validation problems.
VALIDATION_BATCHES = 8


@dataclass(frozen=True)
class StageData:
    """Makes the data of a recipe's stages.

    folder: where shards are kept. kept: by the name of a reject stage, the file of what it kept.
    """

    recipe: Recipe
    writer: TraceWriter
    tasks: Mapping[str, Task]
    folder: Path
    kept: Mapping[str, Path] = field(default_factory=dict)

    def mix(self, stage: LearnStage) -> tuple[DataMix, int]:
        """What the stage learns from, and its number of steps. Raises RecipeError for data that
        cannot be used, TrainError when the disk refuses."""
        if not stage.data:
            raise RecipeError(f"stage {stage.name}: there is no data to learn from")
        part: Part = "train" if stage.validate_every else "all"
        steps = stage.steps or self._steps(stage, part)
        total = sum(spec.weight for spec in stage.data)
        made = []
        for index, spec in enumerate(stage.data):
            share = spec.weight / total
            needed = int(steps * stage.batch_tokens * share) + stage.max_length
            made.append(self._source(stage, index, part, min(needed, MOST_TASK_TOKENS)))
        return self._mixed(stage, made), steps

    def held_out(self, stage: LearnStage, batches: int = VALIDATION_BATCHES) -> DataMix:
        """What the stage is validated on: a task's problems of that split, and the pieces of files
        that `mix` leaves out when the stage validates. Meant for steps 0 to `batches` - 1."""
        most = (batches + 1) * stage.batch_tokens
        made = [self._source(stage, index, "validation", most) for index in range(len(stage.data))]
        return self._mixed(stage, made)

    def opens_thinking(self, stage: LearnStage) -> bool:
        """Whether any of what the stage learns follows a prompt that opens the thinking."""
        return any(
            sources.opens_thinking(
                spec,
                None if spec.task is None else self.tasks[spec.task],
                self._seed(stage, f"data/{index}"),
                self.writer,
            )
            for index, spec in enumerate(stage.data)
        )

    def _steps(self, stage: LearnStage, part: Part) -> int:
        """Steps that the stage's epochs take: counted by the sources that come to an end."""
        assert stage.epochs is not None
        made = [
            self._source(stage, index, part, MOST_TASK_TOKENS)
            for index, spec in enumerate(stage.data)
            if spec.task is None or len(stage.data) == 1
        ]
        if not made or not all(source.shard.is_complete for source in made):
            raise RecipeError(
                f"stage {stage.name}: epochs of a task that never ends; give steps instead"
            )
        total = sum(spec.weight for spec in stage.data)
        ends = [self._mixed(stage, [source]).steps_of(stage.epochs) for source in made]
        return max(
            math.ceil(steps * total / source.weight)
            for steps, source in zip(ends, made, strict=True)
        )

    def _mixed(self, stage: LearnStage, made: list[Source]) -> DataMix:
        return DataMix(
            made,
            seed=self._seed(stage, "order"),
            batch_tokens=stage.batch_tokens,
            max_length=stage.max_length,
            learn_all=isinstance(stage, Pretrain),
        )

    def _source(self, stage: LearnStage, index: int, part: Part, most_tokens: int) -> Source:
        spec = stage.data[index]
        is_text = bool(spec.text or spec.parquet)
        is_whole = not isinstance(stage, Pretrain) and not is_text
        name = sources.name_of(spec)
        if spec.task is None:
            shard = self._file_shard(spec, name)
        else:
            split: Split = "validation" if part == "validation" else "train"
            seed = self._seed(stage, f"data/{index}")
            shard = self._task_shard(spec, name, split, seed, most_tokens)
            part = "all"
        return Source(name, shard, spec.weight, is_whole=is_whole, part=part)

    def _file_shard(self, spec: DataSpec, name: str) -> Shard:
        counts: Counter[str] = Counter()
        return make_shard(
            self.folder,
            sources.file_key(spec, self.kept, self.writer),
            sources.file_documents(spec, self.kept, self.writer, counts),
            self.writer.tokenizer.vocab_size,
            counts=counts,
        )

    def _task_shard(
        self, spec: DataSpec, name: str, split: Split, seed: int, most_tokens: int
    ) -> Shard:
        assert spec.task is not None
        task = self.tasks[spec.task]
        return make_shard(
            self.folder,
            sources.task_key(spec, self.recipe, task, split, seed, self.writer, most_tokens),
            sources.task_documents(spec, task, split, seed, self.writer),
            self.writer.tokenizer.vocab_size,
            counts={},
            most_tokens=most_tokens,
        )

    def _seed(self, stage: LearnStage, purpose: str) -> int:
        text = f"{self.recipe.seed}/{stage.name}/{purpose}"
        # Some tasks number their items from the seed: seeds must lie far apart.
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1
