"""Files of data, good and bad: every complaint names the file and the place."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.errors import RecipeError
from mull.train.data import readers
from mull.train.data.readers import chats, kept_answers, parquet_texts, text_blocks

TURNS = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


def written(folder: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet_file(folder: Path, columns: dict[str, list[object]]) -> Path:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.table(columns), folder / "data.parquet", row_group_size=2)
    return folder / "data.parquet"


@settings(deadline=None, derandomize=True)
@given(text=st.text(alphabet="aé好\n ", min_size=1, max_size=300).filter(str.strip))
def test_blocks_of_text_join_to_the_file(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = written(tmp_path_factory.mktemp("text"), text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK_BYTES", 32)
        blocks = list(text_blocks(path))
    assert "".join(blocks).strip() == text.strip()
    assert all(block.strip() for block in blocks)


def test_a_long_text_is_cut_between_paragraphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 40)
    path = written(tmp_path, "one\ntwo\n\nthree\nfour\n\n" * 10)
    blocks = list(text_blocks(path))
    assert len(blocks) > 3
    assert all(block.endswith("\n\n") for block in blocks)


def test_conversations_are_read_line_by_line(tmp_path: Path) -> None:
    line = json.dumps({"messages": TURNS})
    read = list(chats(written(tmp_path, f"{line}\n\n{line}\n")))
    assert [chat.messages for chat in read] == [TURNS, TURNS]
    assert [chat.where.rpartition(":")[2] for chat in read] == ["1", "3"]


def test_kept_answers_are_read_with_and_without_ids(tmp_path: Path) -> None:
    record = {"question": "1 + 1?", "thinking": "1+1=2", "answer": "2", "reward": 1.0}
    lines = [record, record | {"ids": [5, 6]}]
    read = list(kept_answers(written(tmp_path, "\n".join(map(json.dumps, lines)))))
    assert [kept.ids for kept in read] == [None, (5, 6)]
    assert read[0].thinking == "1+1=2"


def test_parquet_columns_are_read_over_row_groups(tmp_path: Path) -> None:
    path = parquet_file(tmp_path, {"text": ["a", None, "b", "", "c"], "id": [1, 2, 3, 4, 5]})
    assert list(parquet_texts(path, "text")) == ["a", None, "b", None, "c"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "data.jsonl: holds no conversation"),
        ("\n \n", "data.jsonl: holds no conversation"),
        ('{"messages": []}\n{"messages"', r"data.jsonl:2: not valid JSON .*; mend the line"),
        ("[1]", "data.jsonl:1: a line must be a JSON object"),
        ('{"mesages": []}', "data.jsonl:1: no conversation; .* did you mean 'messages' by 'mesag"),
        ('{"messages": ["hello"]}', "data.jsonl:1: no conversation"),
        (b'{"messages": "\xff"}', "data.jsonl:1: not valid JSON"),
        ("[" * 100_000, "data.jsonl:1: not valid JSON"),
    ],
)
def test_a_bad_conversation_is_refused_in_one_line(
    tmp_path: Path, content: str | bytes, complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint) as caught:
        list(chats(written(tmp_path, content)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "no answer was kept; give the stage"),
        ('{"question": "q", "answer": "a"}', ":1: thinking is missing"),
        ('{"question": "q", "thinking": "", "answer": 4}', ":1: answer is missing or no text"),
        ('{"question": "q", "thinking": "", "answer": "a", "ids": ["x"]}', ":1: ids is no list"),
    ],
)
def test_a_bad_kept_answer_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        list(kept_answers(written(tmp_path, content)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "data.txt: holds no text"),
        (b" \n\n", "data.txt: holds no text"),
        (b"one\ntwo\nth\xffree", "data.txt:3: is not UTF-8"),
        (b"one\n\xe4", "data.txt:2: is not UTF-8"),
    ],
)
def test_a_bad_text_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        list(text_blocks(written(tmp_path, content, "data.txt")))


def test_the_line_of_a_bad_byte_is_counted_over_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 7)
    path = written(tmp_path, "é\n".encode() * 50 + b"\xff")
    with pytest.raises(RecipeError, match=":51: is not UTF-8"):
        list(text_blocks(path))


def test_bad_parquet_is_refused(tmp_path: Path) -> None:
    path = parquet_file(tmp_path, {"text": ["a"], "id": [1]})
    with pytest.raises(RecipeError, match=r"no column 'texts'; did you mean 'text'\?"):
        list(parquet_texts(path, "texts"))
    with pytest.raises(RecipeError, match="column 'id' is int64, but must be text"):
        list(parquet_texts(path, "id"))
    whole = path.read_bytes()
    for damaged in (b"not parquet at all", whole[:-40], b""):
        with pytest.raises(RecipeError, match="cannot be read as parquet") as caught:
            list(parquet_texts(written(tmp_path, damaged, "bad.parquet"), "text"))
        assert "\n" not in str(caught.value)
    empty = parquet_file(tmp_path, {"text": ["", ""]})
    with pytest.raises(RecipeError, match="holds no text"):
        list(parquet_texts(empty, "text"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for read in (chats, kept_answers, text_blocks):
        with pytest.raises(RecipeError, match="cannot be read"):
            list(read(tmp_path / "absent"))
