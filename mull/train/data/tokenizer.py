"""A fresh model's tokenizer: byte-level BPE trained on its own data, in DeepSeek-R1's clothes.

The special tokens and the chat template are R1's, so that every tool which knows R1 knows this
model; words are cut by rules that llama.cpp has under a name, so that it exports to GGUF.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from mull.errors import TrainError
from mull.text import pretokenizers
from mull.train.recipe_parts import TokenizerSpec

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
SPECIAL = (BOS, EOS, PAD, "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")

# Merges are found in this much text; more changes hardly any and takes time and memory.
SAMPLE_CHARACTERS = 4_000_000
# Longer words come from data that repeats itself, and are better learnt as several tokens.
_LONGEST = 16

# The rule llama.cpp calls smollm: every digit alone, then GPT-2's words. There it is two
# expressions one after the other; in one it takes two thirds of the time.
_DIGITS_ALONE = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

# Renders what mull.text.template_deepseek renders: all system messages first, no old thinking.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set state = namespace(last=-1, system=none) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{%- set state.last = loop.index0 -%}{%- endif -%}
  {%- if message['role'] == 'system' -%}
    {{- ('' if state.system is none else '\\n\\n') + message['content'] -}}
    {%- set state.system = true -%}
  {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- '<｜User｜>' + message['content'] -}}
  {%- elif message['role'] == 'assistant' -%}
    {%- set content = message['content'] or '' -%}
    {%- set reasoning = message['reasoning_content'] or '' -%}
    {%- if '</think>' in content -%}
      {%- set thought = content.split('</think>')[:-1] | join('</think>') -%}
      {%- set thought = thought.split('<think>')[-1].strip('\\n') -%}
      {%- set reasoning = reasoning or thought -%}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '<｜Assistant｜>' -}}
    {%- if reasoning and loop.index0 > state.last -%}
      {{- '<think>\\n' + reasoning + '\\n</think>\\n\\n' -}}
    {%- endif -%}
    {{- content + '<｜end▁of▁sentence｜>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], spec: TokenizerSpec) -> dict[str, str]:
    """File name -> content of the tokenizer that fits these texts best.

    The vocabulary has `spec.vocabulary` tokens, fewer only where the texts have too few different
    words. The same texts give the same files. Raises TrainError where there is no text.
    """
    backend = BackendTokenizer(models.BPE())
    backend.pre_tokenizer = _cuts(spec)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_LONGEST,
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator(_bounded(texts), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    return _files(backend)


def write_tokenizer(files: Mapping[str, str | bytes], folder: Path) -> None:
    """Writes the files into a new folder, all or nothing; TrainError where the disk refuses."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        temporary.chmod(0o755)
        for name, content in files.items():
            with (temporary / name).open("xb") as file:
                file.write(content if isinstance(content, bytes) else content.encode())
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(folder)
    except OSError as error:
        raise TrainError(f"{folder}: could not be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _cuts(spec: TokenizerSpec) -> pre_tokenizers.PreTokenizer:
    if spec.digits:
        return pretokenizers.build(pretokenizers.PreTokenizer((_DIGITS_ALONE,)))
    return pretokenizers.build(pretokenizers.pre_tokenizer("gpt-2"))


def _bounded(texts: Iterable[str]) -> Iterator[str]:
    left = SAMPLE_CHARACTERS
    for text in texts:
        if left <= 0:
            break
        yield text[:left]
        left -= len(text)
    if left == SAMPLE_CHARACTERS:
        raise TrainError("there is no text to make a tokenizer from; the recipe's data is empty")


def _files(backend: BackendTokenizer) -> dict[str, str]:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {
        "bos_token_id": SPECIAL.index(BOS),
        "eos_token_id": SPECIAL.index(EOS),
        "pad_token_id": SPECIAL.index(PAD),
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    return {
        "tokenizer.json": backend.to_str(),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        "generation_config.json": json.dumps(generation, indent=2) + "\n",
    }
