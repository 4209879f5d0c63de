"""The Python interface on the real model: what the README promises."""

import asyncio
import json
import re
import subprocess
import sys
import threading

import pytest
import torch

import mull
from mull.engine import Grammar

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def llm(smollm2_gguf):
    with mull.load(str(smollm2_gguf), precision="fp32", context=2048) as loaded:
        yield loaded


def test_a_question_is_answered_by_the_real_model(llm):
    answer = llm.generate(QUESTION, max_tokens=32, temperature=0)
    assert "Paris" in answer.text
    assert answer.thinking == ""
    assert answer.finish_reason == "stop"
    assert answer.usage["completion_tokens"] == len(answer.token_ids)
    assert answer.usage["reasoning_tokens"] == 0


def test_text_messages_and_chat_are_the_same_prompt(llm):
    messages = [{"role": "user", "content": QUESTION}]
    asked = [
        llm.generate(QUESTION, max_tokens=12, temperature=0),
        llm.generate(messages, max_tokens=12, temperature=0),
        llm.chat(messages, max_tokens=12, temperature=0),
    ]
    assert len({tuple(answer.token_ids) for answer in asked}) == 1


def test_a_list_of_prompts_gives_a_list_of_answers_in_order(llm):
    prompts = [f"What is {n} plus {n}?" for n in range(1, 6)]
    together = llm.generate(prompts, max_tokens=16, temperature=0)
    alone = [llm.generate(prompt, max_tokens=16, temperature=0) for prompt in prompts]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def test_token_ids_are_taken_as_they_are(llm):
    ids = llm.tokenizer.encode("The capital of France is")
    answer = llm.generate(ids, max_tokens=4, temperature=0)
    assert answer.usage["prompt_tokens"] == len(ids)
    best = int(llm.logits(ids)[-1].argmax())
    assert answer.token_ids[0] == best


def test_logits_are_float32_for_every_position(llm):
    ids = llm.tokenizer.encode("one two three four")
    logits_TV = llm.logits(ids)
    assert logits_TV.dtype == torch.float32
    assert logits_TV.shape == (len(ids), llm.config.vocab_size)


def test_streams_give_the_answer_in_pieces_and_end_once(llm):
    whole = llm.generate(QUESTION, max_tokens=24, temperature=0)
    events = list(llm.stream(QUESTION, max_tokens=24, temperature=0))
    assert "".join(event.text for event in events if event.kind == "answer") == whole.text
    assert [event.kind for event in events].count("end") == 1
    assert events[-1].answer is not None
    assert events[-1].answer.token_ids == whole.token_ids


def test_async_streams_run_side_by_side(llm):
    async def ask(question: str) -> str:
        stream = llm.astream(question, max_tokens=16, temperature=0)
        return "".join([event.text async for event in stream if event.kind == "answer"])

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(ask(f"Name {n} colours.") for n in range(2, 5)))

    together = asyncio.run(ask_all())
    alone = [
        llm.generate(f"Name {n} colours.", max_tokens=16, temperature=0).text for n in range(2, 5)
    ]
    assert together == alone


def test_an_async_stream_compiles_its_grammar_beside_the_loop(llm, monkeypatch):
    threads: list[threading.Thread] = []
    compile_grammar = llm.grammars.compile

    def watched(source: str) -> Grammar:
        threads.append(threading.current_thread())
        return compile_grammar(source)

    async def ask() -> str:
        form = {"type": "regex", "regex": "[a-f]{3}"}
        stream = llm.astream(QUESTION, max_tokens=16, response_format=form)
        return "".join([event.text async for event in stream if event.kind == "answer"])

    monkeypatch.setattr(llm.grammars, "compile", watched)
    assert re.fullmatch("[a-f]{3}", asyncio.run(ask()))
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


def test_prompt_logprobs_are_those_of_a_forward_pass(llm):
    ids = llm.tokenizer.encode("The capital of France is Paris.")
    asked = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 2}
    answer = llm.generate(ids, **asked)
    first, *others = answer.prompt_logprobs
    assert (first.token_id, first.logprob) == (ids[0], None)
    logprobs_TV = llm.logits(ids)[:-1].log_softmax(-1)
    expected = logprobs_TV.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert [other.token_id for other in others] == ids[1:]
    assert [other.logprob for other in others] == pytest.approx(expected, abs=1e-3)
    assert {len(other.top) for other in others} == {2}
    *_, last = llm.stream(ids, **asked)
    assert last.answer.prompt_logprobs == answer.prompt_logprobs
    assert llm.generate(ids, max_tokens=1).prompt_logprobs is None


def test_a_seed_repeats_an_answer_and_n_gives_different_ones(llm):
    first, second = (
        llm.generate(QUESTION, max_tokens=16, temperature=1.0, seed=7) for _ in range(2)
    )
    assert first.token_ids == second.token_ids
    several = llm.generate("Tell me a story.", max_tokens=16, temperature=1.0, seed=7, n=4)
    assert len({tuple(answer.token_ids) for answer in several}) > 1


def test_a_bias_may_be_a_whole_number(llm):
    (likeliest,) = llm.generate(QUESTION, max_tokens=1, temperature=0).token_ids
    answer = llm.generate(QUESTION, max_tokens=1, temperature=0, logit_bias={likeliest: -100})
    assert answer.token_ids != [likeliest]


def test_an_abandoned_stream_frees_its_blocks(llm):
    before = llm.engine.counters.used_blocks
    stream = llm.stream("Tell me a very long story.", max_tokens=500, temperature=0)
    next(stream)
    stream.close()
    llm.generate(QUESTION, max_tokens=1)  # a later request: the cancellation came before it
    assert llm.engine.counters.used_blocks == before
    assert llm.engine.counters.running == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm.generate(""),
        lambda llm: llm.generate([]),
        lambda llm: llm.generate(QUESTION, temperature=-1),
        lambda llm: llm.generate(QUESTION, temperature=float("nan")),
        lambda llm: llm.generate(QUESTION, max_tokens=0),
        lambda llm: llm.generate(QUESTION, top_p=1.5),
        lambda llm: llm.generate(QUESTION, wrong_name=1),
        lambda llm: llm.generate(QUESTION, thinking="maybe"),
        lambda llm: llm.generate("word " * 3000),
        lambda llm: llm.generate([{"role": "nobody", "content": "x"}]),
        lambda llm: llm.generate([{"content": "x"}]),
        lambda llm: llm.generate([10**9]),
        lambda llm: llm.generate([1, 10**5000]),
        lambda llm: llm.generate(QUESTION, thinking=10**5000),
        lambda llm: llm.stream(QUESTION, top_k=-2),
        lambda llm: llm.stream("word " * 3000),
        lambda llm: llm.astream(QUESTION, top_k=-2),
        lambda llm: llm.astream("word " * 3000),
        lambda llm: llm.astream(QUESTION, response_format={"type": "poem"}),
        lambda llm: llm.logits([]),
        lambda llm: llm.generate(["a", 5]),
        lambda llm: llm.generate([1.5]),
        lambda llm: llm.generate(5),
        lambda llm: llm.generate("hi", thinking=["on"]),
        lambda llm: llm.logits("abc"),
        lambda llm: llm.logits([1.0]),
    ],
)
def test_bad_requests_are_refused_in_one_line(llm, call):
    with pytest.raises(mull.MullError) as caught:
        call(llm)
    assert "\n" not in str(caught.value)


def test_too_long_a_prompt_says_how_much_fits(llm):
    with pytest.raises(mull.RequestError, match="2047"):
        llm.generate("word " * 3000)


@pytest.mark.parametrize(
    "options",
    [
        *({"precision": "fp7"}, {"precision": ["fp32"]}, {"device": "abacus"}, {"threads": 0}),
        *({"context": "9"}, {"context": 0}, {"cache_tokens": "x"}, {"cache_tokens": 10**15}),
    ],
    ids=str,
)
def test_bad_arguments_of_load_are_refused(smollm2_gguf, options):
    with pytest.raises(mull.RequestError):
        mull.load(str(smollm2_gguf), **options)


def test_importing_mull_imports_nothing_heavy():
    code = "import sys, json, mull; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "tokenizers", "typer"} & set(json.loads(done.stdout))
