"""Templates of unknown origin: what they may do, and that nothing else works."""

import json
import tracemalloc
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from text_vocabularies import QWEN, tiny
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as BackendTokenizer

from mull.errors import TextError
from mull.text import Tokenizer
from mull.text.jinja_sandbox import MAX_SOURCE_CHARS, JinjaSandbox
from mull.text.template_jinja import JinjaTemplate, LookAlikes
from mull.text.vocabulary import BYTE_OF_CHAR

VARIABLES = {"messages": [{"role": "user", "content": "hi"}], "xs": [1, 2]}


def rendered(source: str) -> str:
    return JinjaSandbox(source).render(VARIABLES)


def test_what_templates_need_works() -> None:
    assert rendered("{{ messages[0].content | upper }}") == "HI"
    assert rendered("{{ {'b': '한', 'a': [1]} | tojson }}") == '{"b": "한", "a": [1]}'
    assert rendered("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"
    assert (
        rendered("{% for x in xs %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}") == "1"
    )
    assert len(rendered("{{ strftime_now('%Y') }}")) == 4
    assert rendered("{% set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}") == "3"


def test_a_template_may_refuse_a_conversation() -> None:
    with pytest.raises(TextError, match="refuses this: no system message"):
        rendered("{{ raise_exception('no system\\nmessage') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ ''['__class__'] }}",
        "{{ raise_exception.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ ('{0.__class__.__init__.__globals__}' | format_map) }}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{",
    ],
)
def test_escapes_and_faults_give_no_more_than_one_line(source: str) -> None:
    try:
        shown = rendered(source)
    except TextError as error:
        shown = str(error).partition("rendered: ")[2] or "nothing"
    assert "\n" not in shown
    assert "root:" not in shown
    assert "<class" not in shown
    assert "<module" not in shown
    assert "uid=" not in shown


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ '%9999999999d' % 1 }}",
        "{% set x = namespace(s='aaaaaaaa') %}"
        "{% for i in range(99) %}{% set x.s = x.s ~ x.s %}{% endfor %}{{ x.s }}",
        "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a' | center(10**10) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 20_000 + "}}",
    ],
    ids=lambda s: s[:40],
)
def test_bombs_end_in_time_with_one_line(source: str) -> None:
    sandbox = JinjaSandbox(source, seconds=1.0, max_output_chars=100_000)
    with pytest.raises(TextError) as error:
        sandbox.render(VARIABLES)
    assert "\n" not in str(error.value)


def test_a_killed_process_is_replaced() -> None:
    sandbox = JinjaSandbox(
        "{% if slow %}{% for i in range(99999) %}{% for j in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}ok",
        seconds=1.0,
    )
    with pytest.raises(TextError, match="over 1 seconds"):
        sandbox.render({"slow": True})
    sandbox._seconds = 60.0  # starting again may take longer here
    assert sandbox.render({"slow": False}) == "ok"
    assert sandbox.render({"slow": False}) == "ok"
    sandbox.close()
    assert sandbox.render({"slow": False}) == "ok"


def test_large_conversations_pass_the_pipes() -> None:
    text = "긴 글 " * 300_000
    sandbox = JinjaSandbox("{{ messages[0].content }}")
    assert sandbox.render({"messages": [{"role": "user", "content": text}]}) == text


def test_a_huge_template_is_refused() -> None:
    with pytest.raises(TextError, match="characters long"):
        JinjaSandbox("x" * (MAX_SOURCE_CHARS + 1))


def test_a_template_that_opens_the_thinking_is_noticed_and_can_be_closed() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
    template = JinjaTemplate(tiny(*QWEN), source)
    messages = [{"role": "user", "content": "hi"}]
    assert template.thinks
    assert template.render(messages).starts_in_thinking
    closed = template.render(messages, thinking=False)
    assert not closed.starts_in_thinking
    assert template.tokenizer.decode(closed.ids) == "hi<think>\n\n</think>\n\n"
    begun = [*messages, {"role": "assistant", "content": "yes"}]
    text = template.tokenizer.decode(template.render(begun, continue_last=True).ids)
    assert text == "hi<think>\n\n</think>\n\nyes"


NAMED = {
    "bos_token": "<s>",
    "eos_token": "<|im_end|>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}


def byte_folder(folder: Path, **config: str) -> Path:
    """One token a byte; the first of the tokens that end an answer is not the one of `NAMED`."""
    backend = BackendTokenizer(models.BPE({text: i for i, text in enumerate(BYTE_OF_CHAR)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ("<|endoftext|>", *NAMED.values())
    backend.add_tokens([AddedToken(text, special=True) for text in specials])
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "source",
    [
        "{{ bos_token }}x{{ eos_token }}{{ unk_token }}{{ pad_token }}",
        "{% if pad_token is defined %}{{ pad_token }}{% endif %}x",
        "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% endfor %}",
        "{% generation %}\n  {% set x = 1 %}\n  {{ x }}\n{% endgeneration %}\n{{ x }}",
        "{{ messages[0] | tojson }}",
        "{{ messages[0] | tojson(ensure_ascii=True) }}",
        "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=True) }}",
        "{{ messages[0] | tojson(indent=2) }}{{ messages[0] | tojson(indent='--') }}",
        "{{ messages[0] | tojson(true, 1, ('; ', '='), true) }}",
    ],
)
@pytest.mark.parametrize("config", [NAMED, {}, {"eos_token": "<|endoftext|>"}])
def test_a_template_finds_what_transformers_gives_it(
    tmp_path: Path, source: str, config: dict[str, str]
) -> None:
    folder = byte_folder(tmp_path, **config)
    messages = [{"role": "user", "content": r"한 <x> né \ufdd0 \ue000"}]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = theirs.apply_chat_template(messages, chat_template=source, tokenize=False)
    ours = Tokenizer.from_folder(folder)
    prompt = JinjaTemplate(ours, source).render(messages)
    assert prompt.ids == ours.encode(text, allow_special=True)


def test_the_end_token_of_a_gguf_is_the_one_it_names() -> None:
    tokenizer = tiny(*QWEN)
    assert tokenizer.eos_ids == {256, 257}
    prompt = JinjaTemplate(tokenizer, "{{ eos_token }}").render([{"role": "user", "content": "x"}])
    assert tokenizer.decode(prompt.ids) == "<|im_end|>"


_SHORT = st.text("<aB|>Σς", max_size=7)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.lists(_SHORT, max_size=4), _SHORT)
def test_a_text_is_marked_where_a_template_could_make_it_a_token(
    tokens: list[str], text: str
) -> None:
    tokens = [token for token in tokens if len(token) > 1]
    parts = [(t[:n].casefold(), t[n:].casefold()) for t in tokens for n in range(1, len(t))]
    folded = text.casefold()
    lies_within = text != "" and any(
        folded in token.casefold() and len(text) < max(map(len, tokens)) for token in tokens
    )
    broken = LookAlikes(tokens).broken(text, "#")
    inside = LookAlikes(tokens).broken(text, "#", key="role")
    before = any(folded.startswith(tail) for _, tail in parts) or lies_within
    after = any(folded.endswith(head) for head, _ in parts) or lies_within
    assert broken == "#" * before + inside + "#" * after


def test_long_tokens_of_structure_take_no_more_memory_than_they_are_long() -> None:
    tokens = ["<" + "a" * 60_000 + end for end in "xyz"]
    tracemalloc.start()
    look_alikes = LookAlikes(tokens)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * sum(map(len, tokens))
    assert look_alikes.broken(tokens[0][:-1], "#").endswith("a#")
