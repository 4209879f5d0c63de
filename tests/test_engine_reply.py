"""How answers end and what is shown of them: stop strings and ids, tool calls, usage, timing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_parts import EOS, chain_of, drain, generate, make_engine, tiny_tokenizer

from mull.engine.reply import Reply
from mull.engine.request import Output, Request, SamplingParams, ToolCall
from mull.engine.sequence import Sequence
from mull.text.stream import StreamParser
from mull.text.templates import ChatTemplate
from mull.text.tokenizer import Tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz</s>"


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


def say(tokenizer: Tokenizer, text: str, first: str, **params) -> tuple[Output, list[str]]:
    """The output for a prompt of the text's first character, and the answer piece by piece."""
    engine = make_engine(chain_of(tokenizer, text), tokenizer)
    request = Request(tokenizer.encode(first), SamplingParams(temperature=0, **params))
    engine.submit(request)
    outputs, events = drain(engine)
    assert engine.counters.used_blocks == 0
    return outputs[0, 0], [event.text for event in events if event.kind == "answer"]


def test_a_stop_string_over_token_borders_ends_the_answer_and_is_not_shown(tokenizer):
    output, pieces = say(tokenizer, ALPHABET, "a", stop=["xyz", "hij"])
    assert output.text == "bcdefg"
    assert "".join(pieces) == output.text
    assert output.finish_reason == "stop"
    assert output.finish_details == {"stop_string": "hij"}
    # The tokens of the stop string itself are kept: they were sampled.
    assert tokenizer.decode(output.token_ids) == "bcdefghij"


def test_a_possible_stop_string_that_does_not_come_is_shown_after_all(tokenizer):
    output, pieces = say(tokenizer, ALPHABET, "a", stop=["hi!", "xyz!"])
    assert output.text == ALPHABET[1:26]
    assert pieces[:7] == ["b", "c", "d", "e", "f", "g", "hij"]
    assert pieces[-1] == "xyz"
    assert output.finish_details == {}


def test_a_stop_string_in_what_was_held_back_at_the_end_counts(tokenizer):
    output, _ = say(tokenizer, ALPHABET, "a", stop=["hi"], max_tokens=8)
    assert (output.text, output.finish_reason) == ("bcdefg", "stop")


def test_a_stop_string_in_the_thinking_does_not_end_it(tokenizer):
    engine = make_engine(chain_of(tokenizer, "zabc</think>defgh"), tokenizer)
    params = SamplingParams(temperature=0, stop=["b", "f"])
    request = Request(tokenizer.encode("z"), params, starts_in_thinking=True)
    (output,) = generate(engine, [request])
    assert (output.thinking, output.text) == ("abc", "de")


def test_a_stop_token_ends_the_answer_and_is_named(tokenizer):
    stop = tokenizer.encode("h")[0]
    output, _ = say(tokenizer, ALPHABET, "a", stop_token_ids=[stop], ignore_eos=True)
    assert output.text == "bcdefg"
    assert output.token_ids[-1] == stop
    assert output.finish_details == {"stop_token_id": stop}


def test_half_a_character_is_never_shown(tokenizer):
    output, pieces = say(tokenizer, "a한é🙂b</s>", "a")
    assert pieces == ["한", "é", "🙂", "b"]
    assert output.usage.completion_tokens == 3 + 2 + 4 + 1 + 1


def test_max_tokens_is_exact(tokenizer):
    output, _ = say(tokenizer, ALPHABET, "a", max_tokens=4)
    assert (output.text, output.finish_reason) == ("bcde", "length")
    assert output.finish_details == {}


def test_usage_and_timing_add_up(tokenizer):
    engine = make_engine(chain_of(tokenizer, "zabc</think>defgh</s>"), tokenizer)
    request = Request(
        tokenizer.encode("qqz"), SamplingParams(temperature=0), starts_in_thinking=True
    )
    (output,) = generate(engine, [request])
    usage = output.usage
    assert (usage.prompt_tokens, usage.cached_tokens) == (3, 0)
    assert (usage.reasoning_tokens, usage.completion_tokens) == (3, 3 + 1 + 5 + 1)
    assert output.token_ids[-1] == EOS
    assert 0 < output.timing.ttft_s <= output.timing.total_s
    assert output.timing.tokens_per_s > 0


@pytest.mark.parametrize("params", [{}, {"max_tokens": 6}, {"stop": ["ef"]}])
def test_read_at_the_end_an_answer_is_the_same(tokenizer, params):
    engine = make_engine(chain_of(tokenizer, "zab한c</think>defgh</s>"), tokenizer)
    sampling = SamplingParams(temperature=0, logprobs=0, **params)
    outputs, kinds = [], []
    for streams in (True, False):
        engine.submit(
            Request(
                tokenizer.encode("qqz"),
                sampling,
                starts_in_thinking=True,
                detect_loops=False,
                streams=streams,
            )
        )
        found, events = drain(engine)
        (output,) = found.values()
        outputs.append(replace(output, request_id=0, timing=None, usage=None))
        outputs.append(output.usage.reasoning_tokens)
        kinds.append([event.kind for event in events])
        assert [t for event in events for t in event.token_ids] == output.token_ids
    assert outputs[:2] == outputs[2:]
    assert len(kinds[1]) < len(kinds[0]) or "stop" in params


def test_the_answer_can_be_asked_for_though_nobody_reads_along(tokenizer):
    engine = make_engine(chain_of(tokenizer, "zabcdefgh</s>"), tokenizer)
    request = Request(
        tokenizer.encode("qqz"),
        SamplingParams(temperature=0, max_tokens=30),
        starts_in_thinking=True,
        detect_loops=False,
        streams=False,
    )
    request_id = engine.submit(request)
    engine.step()
    engine.step()
    engine.answer_now(request_id)
    found, events = drain(engine)
    (output,) = found.values()
    assert output.finish_details["thinking_closed"]["reason"] == "answer_now"
    assert output.thinking == "abc"
    for kind, said in (("thinking", output.thinking), ("answer", output.text)):
        assert "".join(event.text for event in events if event.kind == kind) == said
    assert [t for event in events for t in event.token_ids] == output.token_ids


@pytest.mark.parametrize("streams", [True, False])
def test_asking_for_the_answer_outside_a_thinking_closes_no_later_one(tokenizer, streams):
    engine = make_engine(chain_of(tokenizer, "z<think>ab</think>c<think>"), tokenizer)
    request = Request(
        tokenizer.encode("z"),
        SamplingParams(temperature=0, max_tokens=20),
        detect_loops=False,
        speculate=False,
        streams=streams,
    )
    (unasked,) = generate(engine, [request])
    assert unasked.thinking.count("ab") == 4
    for steps in range(12):
        request_id = engine.submit(request)
        for _ in range(steps):
            engine.step()
        engine.answer_now(request_id)
        (output,) = drain(engine)[0].values()
        if steps % 5 in (1, 2):  # "<think>" or "a" came last, so that a thinking goes on
            assert output.finish_details["thinking_closed"]["reason"] == "answer_now"
        else:
            assert output.token_ids == unasked.token_ids
            assert output.finish_details == unasked.finish_details


def test_a_tool_call_comes_as_data(tokenizer):
    # The chain model cannot repeat a character, so the ids are fed to the reply itself.
    template = ChatTemplate.for_tokenizer(tokenizer)
    written = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    request = Request([1], tools_offered=True)
    seq = Sequence(0, 0, 0, request, 0)
    parser = StreamParser(tokenizer, template=template, tools_offered=True)
    reply = Reply(seq, request, parser, tokenizer, ends=frozenset({EOS}), limit=1000, submitted=0.0)
    events = []
    for token in [*tokenizer.encode(written), EOS]:
        seq.append(token)
        events += reply.push(token, None)
    assert events[-1].output.tool_calls == [ToolCall("add", '{"a": 1}')]
    assert [event.kind for event in events] == ["tool_call", "end"]
    assert events[0].tool_call == ToolCall("add", '{"a": 1}')
