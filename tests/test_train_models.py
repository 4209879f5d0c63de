"""The models of a run: what they begin with, and what their folders hold."""

from __future__ import annotations

from pathlib import Path

from train_parts import DEEPSEEK, fresh_model
from train_run_parts import tiny

from mull import weights
from mull.train.data.tokenizer import train_tokenizer, write_tokenizer
from mull.train.models import Models
from mull.train.problems import Tasks
from mull.train.recipe_parts import TokenizerSpec


def a_base(folder: Path, words: str = "one two three") -> Path:
    """A small model in a folder, with the tokenizer that fits these words."""
    spec = TokenizerSpec(vocabulary=280)
    model = fresh_model({**DEEPSEEK, "vocab_size": 280, "max_position_embeddings": 64})
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    write_tokenizer(train_tokenizer([words] * 9, spec), tokenizer)
    weights.save_folder(model, folder, tokenizer_files=tokenizer)
    return folder


def test_a_sentencepiece_file_beside_the_tokenizer_goes_along_to_the_byte(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    pieces = b"\n\x0e\n\x05<unk>\x15\x00\x00\xff\xfe\x80"
    (base / "tokenizer.model").write_bytes(pieces)
    for change in (f'model={{base="{base}"}}', f'tokenizer.like="{base}"'):
        recipe = tiny(tmp_path, change)
        models = Models(recipe, Tasks(recipe), tmp_path / change.partition("=")[0])
        opened = models.begin(recipe.stages[0])
        saved = models.save("base", opened.model, opened.tokenizer)
        assert (saved / "tokenizer.model").read_bytes() == pieces
        assert (saved / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
