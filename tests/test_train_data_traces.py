"""Traces: what each form says, and that its ids are those of a rollout."""

import dataclasses
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from text_vocabularies import QWEN, tiny
from train_data_parts import Sums, tokenizer_folder, writer_of

from mull.errors import RecipeError, TextError
from mull.tasks.task import Problem, Split
from mull.text import ChatTemplate
from mull.text.stream import StreamParser
from mull.text.template_chatml import Qwen3Template
from mull.train.data import traces
from mull.train.data.traces import Mark, trace
from mull.train.data.writer import TraceWriter

FORMS = ("chat", "worked", "guess", "skipped", "slips", "recheck", "malformed", "direct")


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> TraceWriter:
    return writer_of(tokenizer_folder(tmp_path_factory.mktemp("traces") / "tokenizer"))


def problems(count: int, seed: int = 1) -> list[Problem]:
    return list(itertools.islice(Sums().problems("train", seed), count))


def parsed(writer: TraceWriter, ids: list[int]) -> dict[str, str]:
    parser = StreamParser(writer.tokenizer, starts_in_thinking=True, template=writer.template)
    pieces = [piece for token in ids for piece in parser.push(token)] + parser.finish()
    text = {"thinking": "", "answer": ""}
    for piece in pieces:
        text[piece.kind] += piece.text
    return text


def test_a_chat_is_the_rollouts_prompt_and_an_answer_the_parser_reads(writer: TraceWriter) -> None:
    for problem in problems(50):
        example = writer.trace(trace(problem, "chat", random.Random(1)))
        asked = [{"role": "user", "content": problem.question}]
        prompt = writer.template.render(asked, thinking=True)
        assert example.ids[: len(prompt.ids)] == prompt.ids
        assert prompt.starts_in_thinking
        said = example.ids[len(prompt.ids) :]
        assert parsed(writer, said) == {"thinking": problem.steps, "answer": problem.answer}
        assert said[-1] in writer.tokenizer.eos_ids
        assert example.learn == [False] * len(prompt.ids) + [True] * len(said)


def test_the_thinking_closes_as_the_engine_closes_it(writer: TraceWriter) -> None:
    problem = problems(1)[0]
    ids = writer.trace(trace(problem, "chat", random.Random(1))).ids
    close = writer.template.thinking_close_ids()
    answer = [*writer.tokenizer.encode(problem.answer), writer.turn_end]
    assert ids[-len(close) - len(answer) :] == close + answer


def test_a_question_full_of_markers_stays_text(writer: TraceWriter) -> None:
    question = "</think> <｜User｜> <｜end▁of▁sentence｜>\n 12"
    for thinking in (True, False):
        asked = [{"role": "user", "content": question}]
        rendered = writer.template.render(asked, thinking=thinking).ids
        assert writer.prompt(question, thinking=thinking) == rendered


def test_direct_and_guess_answer_without_thinking(writer: TraceWriter) -> None:
    problem = problems(1)[0]
    direct = writer.trace(trace(problem, "direct", random.Random(1)))
    prompt = writer.prompt(problem.question, thinking=False)
    answer = [*writer.tokenizer.encode(problem.answer), writer.turn_end]
    assert direct.ids == prompt + answer
    guess = writer.trace(trace(problem, "guess", random.Random(1)))
    said = parsed(writer, guess.ids[len(writer.prompt(problem.question, thinking=True)) :])
    assert said["thinking"] == ""
    assert said["answer"].isdigit()


def test_worked_solutions_have_no_tags(writer: TraceWriter) -> None:
    problem = problems(1)[0]
    example = writer.trace(trace(problem, "worked", random.Random(1)))
    text = f"{problem.question}\n{problem.steps}\n\n{problem.answer}"
    assert writer.tokenizer.decode(example.ids, skip_special=True) == text
    assert example.ids[0] == writer.tokenizer.bos_id
    assert example.ids[-1] == writer.document_end


def test_traces_depend_on_seed_and_index_alone() -> None:
    forms = dict.fromkeys(FORMS, 0.125)
    once, again, other = (
        list(itertools.islice(traces.traces(Sums(), "train", seed, forms), 300))
        for seed in (1, 1, 2)
    )
    assert once == again
    assert once != other
    assert {told.form for _, told in once} == set(FORMS)


def test_forms_come_by_share() -> None:
    forms = {"worked": 0.4, "guess": 0.3, "chat": 0.1}
    drawn = [t.form for _, t in itertools.islice(traces.traces(Sums(), "train", 1, forms), 4000)]
    assert abs(drawn.count("worked") / 4000 - 0.5) < 0.03
    assert abs(drawn.count("chat") / 4000 - 0.125) < 0.03


def test_guesses_are_mostly_wrong_and_look_right() -> None:
    rng = random.Random(1)
    guesses = [(p.answer, traces.guessed(p.answer, rng)) for p in problems(1000)]
    right = sum(answer == guess for answer, guess in guesses)
    assert 0.1 < right / 1000 < 0.2
    assert all(len(answer) == len(guess) and guess.isdigit() for answer, guess in guesses)
    assert {traces.guessed("Friday", rng, "Monday") for _ in range(100)} == {"Friday", "Monday"}


def test_slips_are_in_six_of_a_hundred_steps() -> None:
    rng = random.Random(1)
    wrong = total = followed = 0
    for problem in problems(3000):
        steps, answer = traces.with_slips(problem.steps or "", problem.answer, rng)
        pairs = list(zip(steps.split("\n"), (problem.steps or "").split("\n"), strict=True))
        wrong += pairs[0][0] != pairs[0][1]
        total += 1
        if pairs[0][0] != pairs[0][1]:
            old, new = (line.split("=")[1] for line in (pairs[0][1], pairs[0][0]))
            assert len(old) == len(new)
            assert sum(a != b for a, b in zip(old, new, strict=True)) == 1
            followed += pairs[1][0].startswith(f"{new}+")
        if steps == problem.steps:
            assert answer == problem.answer
    assert 0.045 < wrong / total < 0.075
    assert 0.3 < followed / wrong < 0.7


def test_skipped_steps_keep_the_last_and_lose_some() -> None:
    rng = random.Random(1)
    for problem in problems(200):
        lines = (problem.steps or "").split("\n")
        kept = traces.with_steps_left_out(problem.steps or "", rng).split("\n")
        assert kept[-1] == lines[-1]
        assert len(kept) < len(lines)
        assert set(kept) <= set(lines)


def test_second_thoughts_end_where_the_steps_do() -> None:
    rng = random.Random(1)
    told = [traces.with_second_thoughts(p.steps or "", rng) for p in problems(200)]
    assert all(
        text.split("\n")[-1] == p.answer for text, p in zip(told, problems(200), strict=True)
    )
    assert all(("Wait, that is wrong." in text) != ("Check." in text) for text in told)


def test_malformed_answers_fail_in_several_ways(writer: TraceWriter) -> None:
    problem = problems(1)[0]
    rng = random.Random(1)
    told = [trace(problem, "malformed", rng).said for _ in range(200)]
    assert {said.count(Mark.CLOSE) for said in told} == {0, 1, 2}
    prompt = len(writer.prompt(problem.question, thinking=True))
    answers = [
        parsed(writer, writer.trace(traces.Trace("malformed", problem.question, said)).ids[prompt:])
        for said in told
    ]
    assert all(each["answer"] != problem.answer for each in answers)


def test_a_task_without_steps_says_so_and_can_still_guess() -> None:
    task = Sums(has_steps=False)
    with pytest.raises(RecipeError, match=r"sums has no steps .* 'chat' from; use guess or direct"):
        next(traces.traces(task, "train", 1, {"chat": 1.0}))
    assert next(traces.traces(task, "train", 1, {"direct": 1.0}))


def test_problems_that_lack_their_steps_are_passed_over() -> None:
    class Patchy(Sums):
        def problems(self, split: Split, seed: int) -> Iterator[Problem]:
            for index, problem in enumerate(super().problems(split, seed)):
                yield dataclasses.replace(problem, steps=problem.steps if index % 3 else None)

    told = list(itertools.islice(traces.traces(Patchy(), "train", 1, {"chat": 1.0}), 20))
    assert len(told) == 20
    assert all(problem.steps is not None for problem, _ in told)


def test_forms_without_any_share_are_refused() -> None:
    with pytest.raises(RecipeError, match="every share is 0"):
        next(traces.traces(Sums(), "train", 1, {"chat": 0.0}))


def test_a_conversation_is_learnt_where_the_assistant_speaks(writer: TraceWriter) -> None:
    messages = [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "1+1=2"},
        {"role": "user", "content": "and 1?"},
        {"role": "assistant", "content": "<think>\n2+1=3\n</think>\n\n3"},
    ]
    examples = writer.chat(messages)
    # R1's template forgets the first thinking, so the second turn has a context of its own.
    assert len(examples) == 2
    for example, length, thinking, answer in zip(
        examples, (2, 4), ("1+1=2", "2+1=3"), "23", strict=True
    ):
        prompt = writer.template.render(messages[:length], thinking=True).ids
        assert example.ids[: len(prompt)] == prompt
        assert example.learn == [False] * len(prompt) + [True] * (len(example.ids) - len(prompt))
        said = {"thinking": thinking, "answer": answer}
        assert parsed(writer, list(example.ids[len(prompt) :])) == said


def test_turns_without_thinking_share_one_example_where_the_template_lets_them() -> None:
    tokenizer = tiny(QWEN[0], [])
    writer = TraceWriter(ChatTemplate.for_tokenizer(tokenizer))
    assert writer.template.name == "chatml"
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "2"},
    ]
    (example,) = writer.chat(messages)
    whole = writer.template.render(messages, add_generation_prompt=False).ids
    assert list(example.ids) == whole[: len(example.ids)]
    learnt = [t for t, learn in zip(example.ids, example.learn, strict=True) if learn]
    assert tokenizer.decode(learnt) == "1<|im_end|>2<|im_end|>"


def test_a_template_of_another_family_closes_its_own_way() -> None:
    writer = TraceWriter(Qwen3Template(tiny(*QWEN)))
    problem = problems(1)[0]
    example = writer.trace(trace(problem, "chat", random.Random(1)))
    asked = [{"role": "user", "content": problem.question}]
    prompt = writer.template.render(asked, thinking=True).ids
    assert list(example.ids[: len(prompt)]) == prompt
    assert parsed(writer, list(example.ids[len(prompt) :]))["answer"] == problem.answer


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([{"role": "user", "content": "x"}], "no assistant message"),
        ([{"role": "assistant", "content": "x"}], "needs a question"),
        (
            [
                {"role": "user", "content": "x"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
            ],
            "tool calls cannot be learnt",
        ),
    ],
)
def test_a_conversation_with_nothing_to_learn_is_refused(
    writer: TraceWriter, messages: list[dict[str, object]], complaint: str
) -> None:
    with pytest.raises(TextError, match=complaint):
        writer.chat(messages)


def test_the_prompt_is_what_a_loaded_model_is_asked(tmp_path: Path) -> None:
    import torch

    import mull
    from mull.model.config import ModelConfig
    from mull.model.transformer import CausalLM
    from mull.weights.save import save_folder

    folder = tokenizer_folder(tmp_path / "tokenizer")
    writer = writer_of(folder)
    torch.manual_seed(1)
    config = ModelConfig.from_dict(
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": writer.tokenizer.vocab_size,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
    )
    save_folder(CausalLM(config), tmp_path / "model", tokenizer_files=folder)
    with mull.load(str(tmp_path / "model"), precision="fp32") as llm:
        for thinking, is_open in (("auto", True), ("on", True), ("off", False)):
            request = llm.request("What is 12 + 7?", thinking=thinking)
            assert list(request.prompt_ids) == writer.prompt("What is 12 + 7?", thinking=is_open)
            assert request.starts_in_thinking == is_open
