"""A fresh model's tokenizer: what it keeps whole, what others make of its files."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as BackendTokenizer
from train_data_parts import texts, tokenizer_folder

from mull.errors import TrainError
from mull.text import ChatTemplate, Tokenizer, pretokenizers
from mull.text.gguf_tokenizer import gguf_tokenizer
from mull.text.template_deepseek import DeepSeekR1Template
from mull.train.data.tokenizer import SPECIAL, train_tokenizer, write_tokenizer
from mull.train.recipe_parts import TokenizerSpec

# Text, and what stands for structure elsewhere: nobody may form it by typing.
TYPED = st.lists(
    st.one_of(
        st.text(max_size=20), st.sampled_from([*SPECIAL, "\n\n", "  ", "12", " 3.5", "don't"])
    )
).map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer") / "tokenizer", 320)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_source(folder)


def test_it_is_deepseek_r1s_to_the_text_room(tokenizer: Tokenizer) -> None:
    assert isinstance(ChatTemplate.for_tokenizer(tokenizer), DeepSeekR1Template)
    assert tokenizer.special_ids == {text: token for token, text in enumerate(SPECIAL)}
    assert tokenizer.bos_id == 0
    assert tokenizer.eos_ids == {1}
    assert tokenizer.add_bos


def test_the_vocabulary_is_as_large_as_asked(tmp_path: Path) -> None:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefgh", k=4)) for _ in range(200)]
    for size in (270, 300):
        files = train_tokenizer(rng.choices(words, k=2000), TokenizerSpec(vocabulary=size))
        write_tokenizer(files, tmp_path / str(size))
        assert Tokenizer.from_source(tmp_path / str(size)).vocab_size == size


def test_digits_are_tokens_of_their_own_and_words_are_not(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.decode([t]) for t in tokenizer.encode("What is 8080 + 12\n\n345?")]
    digits = "".join(piece for piece in pieces if any(c.isdigit() for c in piece))
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list(digits)
    assert "What" in pieces
    assert "\n\n" in pieces


def test_digits_may_be_merged_where_the_recipe_says_so(tmp_path: Path) -> None:
    files = train_tokenizer(texts(), TokenizerSpec(vocabulary=400, digits=False))
    write_tokenizer(files, tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_source(tmp_path / "tokenizer")
    assert len(tokenizer.encode("1234567890")) < 10


@settings(deadline=None, derandomize=True)
@given(TYPED)
def test_any_text_encodes_and_decodes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(range(len(SPECIAL)))


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_one_cut_is_the_rule_llama_cpp_calls_smollm(folder: Path, text: str) -> None:
    backend = BackendTokenizer.from_file(str(folder / "tokenizer.json"))
    rule = pretokenizers.build(pretokenizers.pre_tokenizer("smollm"))
    assert backend.pre_tokenizer.pre_tokenize_str(text) == rule.pre_tokenize_str(text)


def test_it_exports_to_gguf(folder: Path, tokenizer: Tokenizer) -> None:
    metadata = gguf_tokenizer(folder, tokenizer.vocab_size)
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    back = Tokenizer.from_source(metadata)
    assert back.encode("What is 12 + 7?\n\n19") == tokenizer.encode("What is 12 + 7?\n\n19")


CONVERSATIONS = [
    [{"role": "user", "content": "What is 12 + 7?"}],
    [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<think>\n1+1=2\n</think>\n\n2"},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "and 1?"},
    ],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "1+1=2"},
    ],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<think>\n1+1=2\n</think>\n\n2"},
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_transformers_renders_the_same_ids(
    folder: Path, tokenizer: Tokenizer, messages: list[dict[str, str]]
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    template = ChatTemplate.for_tokenizer(tokenizer)
    asks = messages[-1]["role"] == "user"
    rendered = template.render(messages, add_generation_prompt=asks).ids
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    assert theirs(text, add_special_tokens=False)["input_ids"] == rendered
    assert theirs("12 + 7")["input_ids"] == tokenizer.encode("12 + 7", add_bos=True)
    assert theirs.decode(tokenizer.encode("a  b , c .\n")) == "a  b , c .\n"
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)


def test_the_same_texts_give_the_same_files_in_another_process() -> None:
    code = (
        "from train_data_parts import *;"
        "print(train_tokenizer(texts(), TokenizerSpec(vocabulary=320))['tokenizer.json'], end='')"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, check=True
    )
    here = train_tokenizer(texts(), TokenizerSpec(vocabulary=320))["tokenizer.json"]
    assert told.stdout.decode() == here


def test_no_text_gives_no_tokenizer() -> None:
    with pytest.raises(TrainError, match="no text to make a tokenizer from"):
        train_tokenizer([], TokenizerSpec())


def test_a_tokenizer_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainError, match="could not be written"):
        write_tokenizer({"tokenizer.json": "{}"}, tmp_path / "file" / "tokenizer")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
