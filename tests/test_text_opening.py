"""Templates that open the thinking: transformers and mull render the same, on, off and unasked."""

import json
from pathlib import Path
from typing import Any

import pytest
from text_oracles import read_metadata
from text_vocabularies import DEEPSEEK_V2, LLAMA, QWEN, tiny
from transformers.utils.chat_template_utils import render_jinja_template

from mull.text import ChatTemplate, Tokenizer, hf_tokenizer_files
from mull.text.opening import opening_files, with_opening, without_opening
from mull.text.template_chatml import ChatMLTemplate, Qwen3Template
from mull.text.template_deepseek import DeepSeekV3Template
from mull.text.template_llama3 import Llama3Template

OPENING = "<think>\n"
ASKED = [{"role": "user", "content": "x"}]
TALK = [
    {"role": "system", "content": "S"},
    *ASKED,
    {"role": "assistant", "content": "y"},
    {"role": "user", "content": "z"},
]
WISHES: list[dict[str, bool]] = [{}, {"enable_thinking": True}, {"enable_thinking": False}]
UNKNOWN = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n<|im_end|>\n{% endfor %}\n"
    "{%- if add_generation_prompt %}[assistant]\n{% endif %}\n"
)
V2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'User: ' + message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}{% else %}"
    "{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    return Tokenizer.from_gguf(read_metadata(smollm2_gguf))


def as_transformers(
    source: str, messages: list[dict[str, Any]], *, ask: bool = True, bos: str = "", **wish: Any
) -> str:
    found, _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=ask, bos_token=bos,
        eos_token="<｜end▁of▁sentence｜>", **wish,
    )  # fmt: skip
    return str(found[0])


def opened_of(tokenizer: Tokenizer, source: str | None) -> tuple[ChatTemplate, ChatTemplate, str]:
    """The base's template, the one that opens its thinking, and that one's source."""
    base = ChatTemplate.for_tokenizer(tokenizer, source)
    opened = with_opening(source or base.source, base.thinking_opening)
    return base, ChatTemplate.for_tokenizer(tokenizer, opened), opened


@pytest.mark.parametrize("name", ["smollm2", "unknown", "v2", "chatml", "llama", "v3"])
@pytest.mark.parametrize("messages", [ASKED, TALK])
def test_an_opened_template_renders_what_transformers_renders(
    smollm2: Tokenizer, name: str, messages: list[dict[str, Any]]
) -> None:
    tokenizer, given = {
        "smollm2": (smollm2, smollm2.chat_template),
        "unknown": (smollm2, UNKNOWN),
        "v2": (tiny(*DEEPSEEK_V2), V2),
        # Bases without any template: what mull renders is written down.
        "chatml": (tiny(*QWEN), ChatMLTemplate.source),
        "llama": (tiny(*LLAMA), Llama3Template.source),
        "v3": (tiny(["<bos>", "<｜end▁of▁sentence｜>"], []), DeepSeekV3Template.source),
    }[name]
    base, template, source = opened_of(tokenizer, given)
    assert type(template) is type(base)
    assert template.thinks
    assert not base.thinks
    bos = tokenizer.vocabulary.texts[tokenizer.bos_id or 0]
    for wish in WISHES:
        thinking = wish.get("enable_thinking")
        prompt = template.render(messages, thinking=thinking)
        text = as_transformers(source, messages, bos=bos, **wish)
        assert prompt.ids == tokenizer.encode(text, allow_special=True)
        assert prompt.ids == base.render(messages, thinking=thinking is not False).ids
        assert prompt.starts_in_thinking == text.endswith(OPENING) == (thinking is not False)
        unasked = as_transformers(source, messages, ask=False, bos=bos, **wish)
        assert template.render(messages, thinking=thinking, add_generation_prompt=False).ids == (
            tokenizer.encode(unasked, allow_special=True)
        )


@pytest.mark.parametrize(
    "end",
    ["", "\n", "\n\n", "\r\n", " \n", "A:\n\n", "A: ", "{%- if 1 %}A:\n{% endif %}\n",
     "{% if 1 %}A:\n{% endif %}\n\n", "{{ 'A:\n' }}\n", "{{- 'A:' -}}\n\n", "{# no #}\n", "A:\n  "],
)  # fmt: skip
def test_whatever_a_source_ends_with_only_the_opening_is_added(end: str) -> None:
    base = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}" + end
    source = with_opening(base, OPENING)
    plain = as_transformers(base, ASKED)
    assert as_transformers(source, ASKED) == plain + OPENING
    assert as_transformers(source, ASKED, enable_thinking=False) == plain
    assert as_transformers(source, ASKED, ask=False) == plain
    before = without_opening(source + "\n")
    assert before is not None
    assert as_transformers(before, ASKED) == plain
    assert without_opening(base) is None


def test_an_answer_begun_or_given_before_is_that_of_the_base(smollm2: Tokenizer) -> None:
    for source in (smollm2.chat_template, UNKNOWN):
        base, template, _ = opened_of(smollm2, source)
        for message in (
            {"role": "assistant", "content": "Sure, "},
            {"role": "assistant", "content": "", "reasoning_content": "First"},
            {"role": "assistant", "content": "y", "reasoning_content": "First"},
        ):
            begun = [*ASKED, message]
            assert template.render(begun, continue_last=True) == base.render(
                begun, continue_last=True
            )
    sampled = [*smollm2.encode("hm\n</think>\n\ny"), 2]
    said = [*ASKED, {"role": "assistant", "content": "y", "token_ids": sampled}, *ASKED]
    _, template, _ = opened_of(smollm2, smollm2.chat_template)
    plain = [*ASKED, {"role": "assistant", "content": "y"}, *ASKED]
    assert smollm2.decode(template.render(said).ids) == smollm2.decode(template.render(plain).ids)


def test_an_answer_whose_thinking_was_empty_goes_on_as_it_was_sampled(smollm2: Tokenizer) -> None:
    _, template, _ = opened_of(smollm2, smollm2.chat_template)
    asked, sampled = template.render(ASKED).ids, smollm2.encode("</think>\n\nSure, ")
    begun = [*ASKED, {"role": "assistant", "content": "Sure, ", "token_ids": sampled}]
    assert template.render(begun, continue_last=True).ids == asked + sampled


def test_tools_are_declared_and_answered_as_the_base_does(smollm2: Tokenizer) -> None:
    declared = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    call = {"function": {"name": "now", "arguments": "{}"}}
    called = {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]}
    base, template, _ = opened_of(smollm2, smollm2.chat_template)
    messages = [*ASKED, called, {"role": "tool", "content": "12"}]
    assert template.tool_format == base.tool_format
    prompt = template.render(messages, tools=declared)
    assert prompt == base.render(messages, tools=declared, thinking=True)
    assert prompt.starts_in_thinking


def folder_of(path: Path, files: dict[str, str]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_text(content, encoding="utf-8")
    return path


def test_the_template_is_changed_wherever_the_folder_has_it(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    files = hf_tokenizer_files(read_metadata(smollm2_gguf))
    source, settings = files["chat_template.jinja"], json.loads(files["tokenizer_config.json"])
    config, jinja = "tokenizer_config.json", "chat_template.jinja"
    bare = {name: value for name, value in settings.items() if name != "chat_template"}
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": source}]
    kinds: dict[str, tuple[dict[str, str], set[str]]] = {
        "both": (files, {config, jinja}),
        "jinja": (files | {config: json.dumps(bare)}, {jinja}),
        "config": ({**files, jinja: ""}, {config}),
        "named": ({**files, jinja: "", config: json.dumps({**bare, "chat_template": named})},
                  {config}),
        "none": ({**files, jinja: "", config: json.dumps(bare)}, {config}),
    }  # fmt: skip
    for name, (given, changed) in kinds.items():
        kept = {each: content for each, content in given.items() if content}
        folder = folder_of(tmp_path / name, kept)
        before = ChatTemplate.for_tokenizer(Tokenizer.from_folder(folder))
        found = opening_files(folder)
        assert set(found) == changed
        opened = folder_of(tmp_path / f"{name}-opened", kept | found)
        after = ChatTemplate.for_tokenizer(Tokenizer.from_folder(opened))
        assert after.render(TALK) == before.render(TALK, thinking=True)
        assert after.render(TALK, thinking=False) == before.render(TALK, thinking=False)
        assert opening_files(opened) == {}
    told = json.loads((tmp_path / "named-opened" / config).read_text())["chat_template"]
    assert told[0] == named[0]


def test_a_template_with_thinking_of_its_own_is_left_alone(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    files = hf_tokenizer_files(read_metadata(smollm2_gguf))
    for index, source in enumerate(
        (
            "{{ messages[0].content }}{% if enable_thinking %}<think>{% endif %}<|im_end|>",
            "<tools></tools> <tool_response> <|im_start|> enable_thinking",
            ChatMLTemplate.source + "<think>\n",
        )
    ):
        folder = folder_of(tmp_path / str(index), files | {"chat_template.jinja": source})
        assert opening_files(folder) == {}
    assert Qwen3Template(tiny(*QWEN)).thinks
