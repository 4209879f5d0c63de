"""The models of a run: its own (fresh, or any that mull loads) and the results of its stages.

Results are folders in Hugging Face layout under `stages/`, in float32, so that a stage which begins
with one begins exactly where the one before ended. Stages that train nothing stand for the model
they began with.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mull import weights
from mull.errors import RecipeError, TrainError
from mull.model import CausalLM, ModelConfig
from mull.text import ChatTemplate, Tokenizer, hf_tokenizer_files
from mull.text.opening import opening_files
from mull.train.data.sources import sample_texts
from mull.train.data.tokenizer import SAMPLE_CHARACTERS, train_tokenizer, write_tokenizer
from mull.train.data.writer import TraceWriter
from mull.train.lora import inject, merged_state
from mull.train.problems import Tasks
from mull.train.recipe import OWN, Recipe, spec_of, start_of
from mull.train.recipe_parts import Lora, ModelSpec
from mull.train.recipe_stages import Distill, Evaluate, Reject, StageBase
from mull.train.seeds import seed_of
from mull.train.sizes import fresh_config
from mull.weights.save import tokenizer_files_of

# A tokenizer is made from this much text; a few hundred tokens are found in a few pages.
_CHARACTERS_PER_TOKEN = 2000


@dataclass(frozen=True)
class Opened:
    """A model to train, float32, and the folder of its tokenizer."""

    model: CausalLM
    tokenizer: Path

    @property
    def writer(self) -> TraceWriter:
        return writer_of(self.tokenizer)


def writer_of(tokenizer: Path | Mapping[str, Any]) -> TraceWriter:
    return TraceWriter(ChatTemplate.for_tokenizer(Tokenizer.from_source(tokenizer)))


class Models:
    """folder: of the run. Tokenizers are made, or copied there, when they are first needed."""

    def __init__(self, recipe: Recipe, tasks: Tasks, folder: Path) -> None:
        self._recipe, self._tasks, self._folder = recipe, tasks, folder

    def start_of(self, stage: StageBase) -> str:
        """The name of the result that a stage begins with."""
        return self.result_of(start_of(self._recipe, stage.name))

    def result_of(self, name: str) -> str:
        """The name of the folder that holds a stage's result."""
        for stage in self._recipe.stages:
            if stage.name == name and isinstance(stage, Reject | Evaluate):
                return self.start_of(stage)
        return name

    def path(self, name: str) -> Path:
        return self._folder / "stages" / name

    def begin(self, stage: StageBase) -> Opened:
        """What a stage trains, adapters and all: it has not learnt anything yet."""
        spec = stage.student if isinstance(stage, Distill) else None
        name = stage.name if spec is not None else self.start_of(stage)
        opened = self.fresh(spec, name) if spec is not None else self.open(name)
        lora = spec_of(self._recipe, stage.name).lora
        if lora is not None:
            adapt(opened.model, lora, seed=seed_of(self._recipe.seed, stage.name, "lora"))
        return opened

    def open(self, name: str) -> Opened:
        """A result by its name, or the recipe's own model."""
        if name == OWN:
            return self.fresh(self._recipe.model, OWN)
        return Opened(load(str(self.path(name))), self.path(name))

    def fresh(self, spec: ModelSpec, name: str) -> Opened:
        """The model that a spec describes; name: of its tokenizer's folder, and of its seed."""
        if spec.base is not None:
            tokenizer = self._base_tokenizer(spec.base, name)
            return Opened(load(spec.base), tokenizer)
        tokenizer = self._own_tokenizer()
        model = CausalLM(self.config(spec, tokenizer), mtp=True)
        draw = torch.Generator().manual_seed(seed_of(self._recipe.seed, name, "weights"))
        model.init_weights(generator=draw)
        return Opened(model, tokenizer)

    def config(self, spec: ModelSpec, tokenizer: Path) -> ModelConfig:
        found = Tokenizer.from_source(tokenizer)
        bos = found.bos_id if found.bos_id is not None else 0
        return fresh_config(spec, found.vocab_size, bos=bos, eos=min(found.eos_ids))

    def save(
        self, name: str, model: CausalLM, tokenizer: Path, *, opens_thinking: bool = False
    ) -> None:
        """Writes a stage's result; what a killed run left under its name goes."""
        path = self.path(name)
        shutil.rmtree(path, ignore_errors=True)
        save(model, path, tokenizer, opens_thinking=opens_thinking)

    def _own_tokenizer(self) -> Path:
        """Of the recipe's fresh models: made of its data, or another model's."""
        spec = self._recipe.tokenizer
        base = self._recipe.model.base or spec.like
        if base is not None:
            return self._base_tokenizer(base, OWN)
        folder = self._folder / "tokenizer"
        if not folder.is_dir():
            most = min(SAMPLE_CHARACTERS, spec.vocabulary * _CHARACTERS_PER_TOKEN)
            texts = sample_texts(self._recipe, self._tasks.by_name, most)
            try:
                files = train_tokenizer(texts, spec)
            except TrainError as error:
                raise RecipeError(f"tokenizer: {error}") from None
            write_tokenizer(files, folder)
        return folder

    def _base_tokenizer(self, base: str, name: str) -> Path:
        folder = self._folder / ("tokenizer" if name == OWN else f"tokenizer-{name}")
        if not folder.is_dir():
            source = weights.tokenizer_source(weights.resolve(base))
            files: Mapping[str, str | bytes]
            if isinstance(source, dict):
                files = hf_tokenizer_files(source)
            else:
                found = tokenizer_files_of(source)
                files = {name: file.read_bytes() for name, file in found.items()}
            write_tokenizer(files, folder)
        return folder


def load(name: str) -> CausalLM:
    """Any model that mull loads, in float32, with its multi-token prediction, ready to train."""
    files = weights.resolve(name)
    model = weights.load_model(files, dtype=torch.float32, mtp=weights.holds_mtp(files))
    return model.requires_grad_(True).train()


def adapt(model: CausalLM, lora: Lora, *, seed: int) -> None:
    inject(model, lora, seed=seed % 2**63)


def plain(model: CausalLM, *, mtp: bool = True) -> CausalLM:
    """The same function without adapters or gradients; shares what memory it can."""
    state = merged_state(model)
    names = {name for name in state if mtp or not name.startswith("mtp.")}
    bare = weights.empty_model(model.config, dtype=torch.float32, mtp=mtp and len(model.mtp) > 0)
    bare.load_state_dict({name: state[name] for name in names}, assign=True)
    bare.tie_weights()
    return bare.requires_grad_(False).eval()


def save(model: CausalLM, path: Path, tokenizer: Path, *, opens_thinking: bool = False) -> None:
    """opens_thinking: the model has learnt to go on from prompts that open the thinking, so its
    chat template does that."""
    files: dict[str, str | Path] = {**tokenizer_files_of(tokenizer)}
    if opens_thinking:
        files |= opening_files(tokenizer)
    weights.save_folder(plain(model), path, tokenizer_files=files)


def refuse_teacher(stage: Distill, teacher: Tokenizer, student: Tokenizer) -> None:
    """RecipeError where a token of the teacher's means another text to its student."""
    texts = zip(teacher.vocabulary.texts, student.vocabulary.texts, strict=False)
    for token, (theirs, ours) in enumerate(texts):
        if theirs != ours:
            raise RecipeError(
                f"stage {stage.name}: token {token} is {theirs[:20]!r} in the teacher's vocabulary "
                f"and {ours[:20]!r} in the student's; take a teacher of the same vocabulary, or "
                'learn its answers (form = "sft")'
            )


def refuse_vocabulary(model: CausalLM, writer: TraceWriter) -> None:
    """RecipeError where a tokenizer has more tokens than the model has rows."""
    if writer.tokenizer.vocab_size > model.config.vocab_size:
        raise RecipeError(
            f"the tokenizer has {writer.tokenizer.vocab_size} tokens, but the model only "
            f"{model.config.vocab_size}: take the tokenizer that belongs to it"
        )
