"""The real `openai` and `anthropic` clients against a real server: whole answers and streams."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from wire_server import (
    ANSWER,
    THINKING,
    endless_model,
    running_server,
    serving,
    sse_events,
    thinking_model,
)

ASK = [{"role": "user", "content": "Tell me of Rome."}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
WEATHER = {
    "name": "weather",
    "description": "The weather of a day",
    "parameters": {
        "type": "object",
        "properties": {"day": {"enum": ["today", "tomorrow"]}},
        "required": ["day"],
        "additionalProperties": False,
    },
}
CHAT_TOOLS: list[Any] = [{"type": "function", "function": WEATHER}]
RESPONSE_TOOLS: list[Any] = [{"type": "function", **WEATHER}]
MESSAGE_TOOLS: list[Any] = [
    {"name": "weather", "description": "Days", "input_schema": WEATHER["parameters"]}
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(thinking_model(tmp_path_factory.mktemp("model"))) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def claude(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)


def thought(message: Any) -> str | None:
    return message.model_dump().get("reasoning_content")


# --- chat completions


def test_a_chat_completion_has_its_thinking_beside_the_answer(client):
    done = client.chat.completions.create(model="thinker", messages=ASK, temperature=0)
    message = done.choices[0].message
    assert (message.content, thought(message)) == (ANSWER, THINKING)
    assert done.choices[0].finish_reason == "stop"
    usage = done.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def test_a_streamed_chat_says_the_same_in_chunks(client):
    chunks = list(
        client.chat.completions.create(
            model="thinker",
            messages=ASK,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert "".join(thought(delta) or "" for delta in deltas) == THINKING
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens > 0


def test_samples_stops_limits_and_log_probabilities(client):
    done = client.chat.completions.create(
        model="thinker", messages=ASK, n=2, stop=["hills"], logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in done.choices] == [0, 1]
    assert all(choice.message.content.endswith("its ") for choice in done.choices)
    listed = done.choices[0].logprobs.content
    assert len(listed[0].top_logprobs) == 2
    short = client.chat.completions.create(model="thinker", messages=ASK, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 3


def test_thinking_is_switched_off_and_held_to_a_budget(client):
    off = client.chat.completions.create(
        model="thinker", messages=ASK, extra_body={"thinking": {"type": "disabled"}}
    )
    assert (off.choices[0].message.content, thought(off.choices[0].message)) == (ANSWER, None)
    held = client.chat.completions.create(
        model="thinker", messages=ASK, extra_body={"thinking_budget": 4}
    )
    assert held.usage.completion_tokens_details.reasoning_tokens == 4
    assert held.choices[0].message.content == ANSWER


def test_a_schema_binds_the_answer_and_leaves_the_thinking(client):
    wish = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    done = client.chat.completions.create(model="thinker", messages=ASK, response_format=wish)
    assert thought(done.choices[0].message) == THINKING
    assert json.loads(done.choices[0].message.content)["n"] in range(10)


def test_chat_models_are_parsed_by_the_clients_own_helper(client):
    from pydantic import BaseModel

    class Count(BaseModel):
        n: int

    done = client.chat.completions.parse(
        model="thinker", messages=ASK, response_format=Count, max_tokens=400,
        extra_body={"detect_loops": False}, temperature=0,
    )  # fmt: skip
    if done.choices[0].finish_reason == "stop":
        assert isinstance(done.choices[0].message.parsed.n, int)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_chat_tool_loop_with_its_thinking_passed_back(client, streamed):
    """Called, answered, and told again: with the thinking of the first step in the prompt."""
    asked = {
        "model": "thinker", "messages": ASK, "tools": CHAT_TOOLS, "tool_choice": "required",
        "parallel_tool_calls": False, "temperature": 0,
    }  # fmt: skip
    if streamed:
        with client.chat.completions.stream(**asked) as events:
            for _ in events:
                pass
            done = events.get_final_completion()
    else:
        done = client.chat.completions.create(**asked)
    choice = done.choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["day"] in ("today", "tomorrow")
    said = {
        "role": "assistant",
        "content": choice.message.content,
        "tool_calls": [call.model_dump(include={"id", "type", "function"})],
    }
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    with_thinking = [*ASK, {**said, "reasoning_content": THINKING}, result]
    final = client.chat.completions.create(
        model="thinker", messages=with_thinking, tools=CHAT_TOOLS, temperature=0
    )
    without = client.chat.completions.create(
        model="thinker", messages=[*ASK, said, result], tools=CHAT_TOOLS, temperature=0
    )
    assert final.choices[0].finish_reason == "stop"
    assert final.usage.prompt_tokens > without.usage.prompt_tokens


def test_calls_of_two_answers_never_have_one_id(client, monkeypatch):
    letters = "A" * 23
    ids: set[str] = set()
    for end in ("-", "-B", "B-", "_"):
        monkeypatch.setattr("secrets.token_urlsafe", lambda _, end=end: letters + end)
        said = client.chat.completions.create(
            model="thinker", messages=ASK, tools=CHAT_TOOLS, tool_choice="required"
        )
        ids |= {call.id for call in said.choices[0].message.tool_calls}
    assert len(ids) >= 4
    assert all(letters in id for id in ids)


def test_errors_of_chat_are_the_clients_own_exceptions(client):
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.chat.completions.create(model="nothing-like-it", messages=ASK)
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="thinker", messages=ASK, temperature=9)
    wish = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="not"):
        client.chat.completions.create(model="thinker", messages=ASK, response_format=wish)
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        client.chat.completions.create(model="thinker", messages=ASK, tool_choice="required")


def test_a_chat_goes_on_from_a_prefix(client):
    begun = [*ASK, {"role": "assistant", "content": "Rome is old;", "prefix": True}]
    done = client.chat.completions.create(model="thinker", messages=begun, max_tokens=3)
    whole = client.chat.completions.create(model="thinker", messages=begun[:1], max_tokens=3)
    # what was put into its mouth is in the prompt, and no thinking was opened after it
    assert done.usage.prompt_tokens > whole.usage.prompt_tokens
    assert thought(done.choices[0].message) is None
    for messages in ([begun[1], ASK[0]], [{**ASK[0], "prefix": True}]):
        with pytest.raises(openai.BadRequestError, match="prefix"):
            client.chat.completions.create(model="thinker", messages=messages)


def test_a_stream_that_lost_its_connection_goes_on_where_it_was(url, client):
    asked = {
        "model": "thinker", "messages": ASK, "temperature": 0, "stream": True,
        "stream_options": {"resumable": True, "include_usage": True},
    }  # fmt: skip
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=asked, timeout=60) as response:
        events = sse_events(response)
        seen = [next(events) for _ in range(4)]
    name, last = seen[0][2]["id"], seen[-1][1]
    again = f"{url}/v1/chat/completions/{name}"
    header = {"Last-Event-ID": str(last)}
    with httpx2.stream("GET", again, params={"stream": True}, headers=header) as response:
        rest = list(sse_events(response))
    assert rest[-1][2] == "[DONE]"
    chunks = [data for _, _, data in (*seen, *rest[:-1])]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(d.get("reasoning_content") or "" for d in deltas) == THINKING
    assert "".join(d.get("content") or "" for d in deltas) == ANSWER
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    whole = client.chat.completions.retrieve(name)
    assert (whole.id, whole.choices[0].message.content) == (name, ANSWER)
    assert client.chat.completions.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(name)


def test_an_answer_that_is_not_to_be_kept_is_not(client):
    done = client.chat.completions.create(model="thinker", messages=ASK)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(done.id)


def test_thinking_that_comes_back_is_left_out_or_where_that_is_wished_refused(client, tmp_path):
    said = {"role": "assistant", "content": ANSWER}
    more = {"role": "user", "content": "And then?"}
    counts = {
        client.chat.completions.create(
            model="thinker", messages=[*ASK, {**said, **extra}, more], max_tokens=1
        ).usage.prompt_tokens
        for extra in ({}, {"reasoning_content": THINKING})
    }
    assert len(counts) == 1
    with running_server(thinking_model(tmp_path), strict_reasoning=True) as strict:
        messages = [*ASK, {**said, "reasoning_content": THINKING}, more]
        refused = httpx2.post(
            f"{strict}/v1/chat/completions", json={"messages": messages}, timeout=60
        )
        assert refused.status_code == 400
        assert "reasoning_content" in refused.json()["error"]["param"]


def test_deepseeks_own_addresses_and_names_mean_the_same(url):
    for base in (url, f"{url}/beta", f"{url}/v1"):
        own = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
        thinks = own.chat.completions.create(model="deepseek-reasoner", messages=ASK)
        assert thought(thinks.choices[0].message) == THINKING
    plain = own.chat.completions.create(model="deepseek-chat", messages=ASK)
    assert thought(plain.choices[0].message) is None


# --- completions


def test_a_completion_goes_on_from_a_text(client):
    done = client.completions.create(
        model="thinker", prompt="Rome is", max_tokens=40, temperature=0, echo=True
    )
    assert done.choices[0].text.startswith("Rome is")
    bare = client.completions.create(model="thinker", prompt="Rome is", max_tokens=0, echo=True)
    assert bare.choices[0].text == "Rome is"


def test_a_streamed_completion_says_the_same(client):
    asked = {"model": "thinker", "prompt": "a b", "max_tokens": 12, "temperature": 0, "n": 2}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    for i in range(2):
        said = [c.choices[0].text for c in chunks if c.choices and c.choices[0].index == i]
        assert "".join(said) == whole.choices[i].text


def test_a_completion_leaves_out_no_tag_of_the_model(url, client):
    asked = {"model": "thinker", "prompt": "\n", "max_tokens": 200, "temperature": 0}
    choice = client.completions.create(**asked, logprobs=0).choices[0]
    assert f"{THINKING}\n</think>\n\n{ANSWER}" in choice.text
    assert choice.finish_reason == "stop"
    assert "".join(choice.logprobs.tokens).startswith(choice.text)
    several = client.completions.create(**asked | {"prompt": ["\n", "a"]}).usage
    cached = several.prompt_cache_hit_tokens + several.prompt_cache_miss_tokens
    assert cached == several.prompt_tokens


def test_several_prompts_are_answered_in_order(client):
    done = client.completions.create(
        model="thinker", prompt=["one", "two"], n=2, echo=True, max_tokens=3
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert [choice.text[:3] for choice in done.choices] == ["one", "one", "two", "two"]


def test_prompts_of_ids_are_scored_as_harnesses_ask(client):
    """The very request with which lm-evaluation-harness scores an answer."""
    ids = [40, 41, 42, 43, 44]
    done = client.completions.create(
        model="thinker", prompt=[ids, ids[:3]], temperature=0, max_tokens=1, logprobs=1, seed=1234,
        echo=True,
    )  # fmt: skip
    first, second = (choice.logprobs for choice in done.choices)
    assert (len(first.tokens), len(second.tokens)) == (6, 4)
    assert first.token_logprobs[0] is None
    assert all(value <= 0 for value in first.token_logprobs[1:])
    assert first.token_logprobs[1:3] == pytest.approx(second.token_logprobs[1:3], abs=1e-4)
    assert all(len(top) == 1 for top in first.top_logprobs[1:])


def test_the_models_are_listed(client):
    assert "thinker" in [model.id for model in client.models.list()]
    assert client.models.retrieve("thinker").id == "thinker"


# --- responses


def test_a_response_has_reasoning_and_message_items(client):
    done = client.responses.create(model="thinker", input="Tell me of Rome.", temperature=0)
    assert [item.type for item in done.output] == ["reasoning", "message"]
    assert done.output[0].content[0].text == THINKING
    assert done.output_text == ANSWER
    assert done.status == "completed"
    assert done.usage.output_tokens_details.reasoning_tokens > 0


def test_a_streamed_response_tells_of_every_item(client):
    events = list(client.responses.create(model="thinker", input="Rome?", stream=True))
    kinds = [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    thinking = "".join(e.delta for e in events if e.type == "response.reasoning_text.delta")
    assert (thinking, text) == (THINKING, ANSWER)
    order = [
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_text.done",
    ]
    assert [kinds.index(kind) for kind in order] == sorted(kinds.index(kind) for kind in order)
    assert events[-1].response.output_text == ANSWER


def test_the_clients_stream_helper_follows_a_response(client):
    with client.responses.stream(model="thinker", input="Rome?") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == ANSWER


def test_a_response_is_kept_gone_on_from_and_deleted(client):
    first = client.responses.create(model="thinker", input="One?", instructions="Be brief.")
    assert client.responses.retrieve(first.id).output_text == ANSWER
    items = client.responses.input_items.list(first.id)
    assert items.data[0].content[0].text == "One?"
    second = client.responses.create(model="thinker", input="Two?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    alone = client.responses.create(model="thinker", input="Two?")
    assert second.usage.input_tokens > alone.usage.input_tokens
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="thinker", input="x", previous_response_id=first.id)


def test_a_response_that_is_not_to_be_stored_is_not(client):
    done = client.responses.create(model="thinker", input="One?", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(done.id)


def test_a_response_in_the_background_is_followed_and_read_again(client):
    started = client.responses.create(model="thinker", input="One?", background=True)
    events = list(client.responses.retrieve(started.id, stream=True, starting_after=1))
    assert events[0].sequence_number == 2
    assert events[-1].type == "response.completed"
    assert client.responses.retrieve(started.id).status == "completed"


def test_items_are_named_instead_of_sent_again(client):
    said = client.responses.create(model="thinker", input="One?")
    for number in range(3):
        named = [{"type": "item_reference", "id": item.id} for item in said.output]
        asked = [{"role": "user", "content": "One?"}, *named, {"role": "user", "content": "Two?"}]
        counted = client.responses.input_tokens.count(model="thinker", input=asked)
        assert counted.input_tokens > said.usage.input_tokens + 5, number
        said = client.responses.create(model="thinker", input="One?")
    unknown = [{"type": "item_reference", "id": said.output[0].id + "9"}]
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="thinker", input=unknown)


def test_what_a_response_came_to_outlives_its_events(tmp_path):
    with running_server(thinking_model(tmp_path), keep_minutes=1e-6) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        first = client.responses.create(model="thinker", input="One?")
        client.responses.create(model="thinker", input="Two?")
        assert client.responses.retrieve(first.id).output == first.output
        with pytest.raises(openai.BadRequestError, match="events of response"):
            list(client.responses.retrieve(first.id, stream=True))
        assert client.responses.cancel(first.id).status == "completed"
        more = client.responses.create(
            model="thinker", input="Three?", previous_response_id=first.id
        )
        assert more.usage.input_tokens > first.usage.input_tokens + 10


@pytest.mark.parametrize("streams", [False, True])
def test_a_response_ends_with_its_client_unless_it_is_in_the_background(tmp_path, streams):
    with serving(endless_model(tmp_path, context=65536)) as running:
        body = {"input": "One?", "max_output_tokens": 60_000, "stream": streams}
        answers = running.server.parts.answers
        host = httpx2.URL(running.url)
        with socket.create_connection((host.host, host.port), timeout=60) as connection:
            sent = json.dumps(body).encode()
            head = f"POST /v1/responses HTTP/1.1\r\nHost: {host.netloc.decode()}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
            connection.sendall(head.encode() + sent)
            until(lambda: answers.running)
        until(lambda: not answers.running)


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def test_a_running_response_is_cancelled(tmp_path):
    with running_server(endless_model(tmp_path, context=65536)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        started = client.responses.create(
            model="endless", input="One?", background=True, max_output_tokens=60_000
        )
        assert client.responses.cancel(started.id).status == "cancelled"


def test_a_response_cut_short_says_why(client):
    done = client.responses.create(model="thinker", input="One?", max_output_tokens=4)
    assert done.status == "incomplete"
    assert done.incomplete_details.reason == "max_output_tokens"


def test_a_response_obeys_a_schema(client):
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    done = client.responses.create(model="thinker", input="One?", text={"format": form})
    assert json.loads(done.output_text)["n"] in range(10)
    assert done.output[0].content[0].text == THINKING


@pytest.mark.parametrize("by_id", [True, False])
def test_a_tool_loop_of_responses(client, by_id):
    first = client.responses.create(
        model="thinker", input="Weather?", tools=RESPONSE_TOOLS, temperature=0,
        tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False,
    )  # fmt: skip
    call = first.output[-1]
    assert (call.type, call.name) == ("function_call", "weather")
    result: dict[str, Any] = {
        "type": "function_call_output", "call_id": call.call_id, "output": "sunny"
    }  # fmt: skip
    if by_id:
        more: dict[str, Any] = {"input": [result], "previous_response_id": first.id}
    else:
        said = [item.model_dump(exclude_none=True) for item in first.output]
        more = {"input": [{"role": "user", "content": "Weather?"}, *said, result]}
    second = client.responses.create(model="thinker", tools=RESPONSE_TOOLS, temperature=0, **more)
    assert second.status == "completed"
    # The thinking of the first step is in the prompt of the second.
    assert second.usage.input_tokens > first.usage.input_tokens + 10


def test_streamed_function_calls_of_responses(client):
    events = list(
        client.responses.create(
            model="thinker", input="Weather?", tools=RESPONSE_TOOLS, tool_choice="required",
            parallel_tool_calls=False, stream=True,
        )
    )  # fmt: skip
    done = next(e for e in events if e.type == "response.function_call_arguments.done")
    assert json.loads(done.arguments)["day"] in ("today", "tomorrow")
    assert events[-1].response.output[-1].arguments == done.arguments


def test_errors_of_responses(client):
    with pytest.raises(openai.BadRequestError, match=r"input\[0\]"):
        client.responses.create(model="thinker", input=[{"type": "computer_call"}])
    with pytest.raises(openai.BadRequestError, match="only functions"):
        client.responses.create(model="thinker", input="x", tools=[{"type": "web_search"}])
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="nothing-like-it", input="x")


def test_the_tokens_of_a_response_are_counted(client):
    counted = client.responses.input_tokens.count(model="thinker", input="One?")
    done = client.responses.create(model="thinker", input="One?")
    assert counted.input_tokens == done.usage.input_tokens


# --- messages


def test_a_message_has_thinking_and_text_blocks(claude):
    done = claude.messages.create(
        model="thinker", messages=ASK, max_tokens=200, system="Be kind.",
        thinking={"type": "enabled", "budget_tokens": 1024},
    )  # fmt: skip
    assert [block.type for block in done.content] == ["thinking", "text"]
    assert (done.content[0].thinking, done.content[1].text) == (THINKING, ANSWER)
    assert done.content[0].signature
    assert done.stop_reason == "end_turn"
    assert done.usage.output_tokens_details.thinking_tokens > 0


def test_a_message_without_thinking(claude):
    done = claude.messages.create(
        model="thinker", messages=ASK, max_tokens=200, thinking={"type": "disabled"}
    )
    assert [block.type for block in done.content] == ["text"]


def test_a_streamed_message_tells_of_every_block(claude):
    with claude.messages.stream(model="thinker", messages=ASK, max_tokens=200) as stream:
        kinds = [event.type for event in stream]
        done = stream.get_final_message()
    assert (done.content[0].thinking, done.content[1].text) == (THINKING, ANSWER)
    assert done.content[0].signature
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert done.usage.output_tokens > 0


def test_stop_sequences_and_limits_of_messages(claude):
    done = claude.messages.create(
        model="thinker", messages=ASK, max_tokens=200, stop_sequences=["hills"]
    )
    assert (done.stop_reason, done.stop_sequence) == ("stop_sequence", "hills")
    short = claude.messages.create(model="thinker", messages=ASK, max_tokens=2)
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 2)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_loop_of_messages_with_its_thinking_passed_back(claude, streamed):
    asked = {
        "model": "thinker", "messages": ASK, "max_tokens": 300, "tools": MESSAGE_TOOLS,
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        "extra_body": {"temperature": 0},
    }  # fmt: skip
    if streamed:
        with claude.messages.stream(**asked) as stream:
            first = stream.get_final_message()
    else:
        first = claude.messages.create(**asked)
    call = first.content[-1]
    assert (first.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "weather")
    assert call.input["day"] in ("today", "tomorrow")
    said = [block.model_dump(exclude_none=True) for block in first.content]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    loop = [*ASK, {"role": "assistant", "content": said}, {"role": "user", "content": [result]}]
    second = claude.messages.create(
        model="thinker",
        messages=loop,
        max_tokens=200,
        tools=MESSAGE_TOOLS,
        extra_body={"temperature": 0},
    )
    assert second.stop_reason == "end_turn"
    counted = [
        claude.messages.count_tokens(model="thinker", messages=messages, tools=MESSAGE_TOOLS)
        for messages in (loop, [ASK[0], {"role": "assistant", "content": said[1:]}, loop[2]])
    ]
    assert counted[0].input_tokens > counted[1].input_tokens


def test_a_message_goes_on_from_what_is_put_in_its_mouth(claude):
    begun = [*ASK, {"role": "assistant", "content": "Rome is"}]
    # What comes after "is" the model does not know: drawn, it may be the end.
    done = claude.messages.create(
        model="thinker", messages=begun, max_tokens=50, extra_body={"temperature": 0}
    )
    assert done.content[0].type == "text"


def test_counted_tokens_are_those_of_the_prompt(claude):
    counted = claude.messages.count_tokens(model="thinker", messages=ASK)
    done = claude.messages.create(model="thinker", messages=ASK, max_tokens=5)
    usage = done.usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_a_message_obeys_a_schema(claude):
    done = claude.messages.create(
        model="thinker", messages=ASK, max_tokens=200,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )  # fmt: skip
    assert json.loads(done.content[-1].text)["n"] in range(10)


def test_errors_of_messages_have_anthropics_form(claude):
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="nothing-like-it", messages=ASK, max_tokens=5)
    assert missing.value.body["type"] == "error"
    assert missing.value.body["error"]["type"] == "not_found_error"
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    with pytest.raises(anthropic.BadRequestError, match="image"):
        claude.messages.create(
            model="thinker", messages=[{"role": "user", "content": [image]}], max_tokens=5
        )
