"""`mull chat`: on a pipe, and at a real (pseudo-)terminal."""

import json
import weakref
from pathlib import Path

import pytest
from mull_command import Terminal, make_store, run_mull

from mull.cli.chat import Chat
from mull.cli.conversation import Conversation
from mull.cli.options import LoadOptions, load
from mull.llm import LLM


def test_piped_lines_are_answered_in_one_conversation_and_the_exit_code_is_0(
    smollm2_gguf: Path,
) -> None:
    done = run_mull(
        "chat",
        "--temperature",
        "0",
        "--max-tokens",
        "24",
        stdin="What is the capital of France?\n\nWhat was my question?\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The capital of France is Paris")
    assert done.stdout.count("\n") >= 2
    assert "\x1b" not in done.stdout + done.stderr


def test_a_line_that_does_not_fit_is_refused_and_the_others_are_answered(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    lines = [
        "word " * 300,
        "/save chat.json",
        "What is the capital of France?",
        "/save chat.md",
        "/nope",
    ]
    done = run_mull(
        "chat",
        *("--context", "200", "--temperature", "0", "--max-tokens", "24"),
        stdin="\n".join(lines) + "\n",
        cwd=tmp_path,
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("mull: ")]
    assert len(errors) == 2
    assert "fit" in errors[0]
    assert "/nope" in errors[1]
    assert "Paris" in done.stdout
    # The refused question left no trace in the conversation.
    assert json.loads((tmp_path / "chat.json").read_text())["messages"] == []
    saved = (tmp_path / "chat.md").read_text()
    assert "## You" in saved
    assert "Paris" in saved
    assert "word word" not in saved


def test_a_chat_at_a_terminal(smollm2_gguf: Path, tmp_path: Path) -> None:
    home = make_store(smollm2_gguf, tmp_path / "home")
    chat = Terminal(["chat", "--temperature", "0"], env={"MULL_HOME": str(home)})
    chat.wait_for("/help for help")
    chat.wait_for(">>>")

    chat.send("/help\r")
    assert "/think on|off|auto|N" in chat.wait_for("Ctrl-D")
    chat.send("/model no-such-model\r")
    chat.wait_for("mull: no model 'no-such-model'")
    chat.send("/model\r")
    chat.wait_for("model smollm2-135m · ")
    chat.send("/think 128\r")
    chat.wait_for("at most 128 tokens")
    chat.send("/thnk\r")
    chat.wait_for("did you mean /think?")

    chat.send("What is the capital\\\rof France?\r")
    chat.wait_for("Paris")
    chat.wait_for(" of 8,192]")

    chat.send("Write a story of a thousand words about the sea.\r")
    chat.wait_for(",")  # no comma in the question: the answer is under way
    chat.send("\x03")
    chat.wait_for("(stopped)")
    chat.send("What is the capital of France?\r")
    chat.wait_for(" of 8,192]")

    chat.send("/retry\r")
    chat.wait_for(" of 8,192]")
    saved = tmp_path / "chat.json"
    chat.send(f"/save {saved}\r")
    chat.wait_for("saved ")
    chat.send(f"/save {saved}\r")
    chat.wait_for("exists already")
    chat.send(f"/model {smollm2_gguf}\r")
    chat.wait_for(f"model {smollm2_gguf.stem} · ")
    chat.send("What is the capital of France?\r")
    chat.wait_for(" of 8,192]")
    chat.send("/clear\r")
    chat.wait_for("cleared")
    chat.wait_for(">>>")
    chat.send("unfinished")
    chat.wait_for("unfinished")
    chat.send("\x03")
    chat.wait_for("Ctrl-D or /quit leaves")
    chat.wait_for(">>>")
    chat.send("\x04")
    assert chat.exit_code() == 0

    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3
    assert messages[0]["content"] == "What is the capital\nof France?"
    assert "," in messages[3]["content"]  # the stopped answer is kept as far as it came
    history = home / "chat_history"
    assert "thousand words" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0
    assert "Traceback" not in chat.raw


def test_the_old_model_is_gone_before_another_is_loaded(
    smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, options = str(smollm2_gguf), LoadOptions(context=256)
    first = load(name, options)
    engine = weakref.ref(first.engine)
    session = Chat(Conversation(first), options, name)
    del first
    list(session.loaded().stream("Hello", max_tokens=2))
    left = []

    def load_after_a_look(name: str, options: LoadOptions) -> LLM:
        left.append(engine())
        return load(name, options)

    monkeypatch.setattr("mull.cli.chat.load", load_after_a_look)
    session.switch_model(name)
    assert left == [None]
    session.loaded().close()


def test_a_switch_that_is_stopped_twice_loses_nothing_of_the_chat(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, options = str(smollm2_gguf), LoadOptions(context=256)
    session = Chat(Conversation(load(name, options), sampling={"max_tokens": 4}), options, name)
    session.handle("Hello", verbose=False)
    said = list(session.conversation.messages)
    stops = 3

    def load_or_stop(name: str, options: LoadOptions) -> LLM:
        nonlocal stops
        stops -= 1
        if stops >= 0:
            raise KeyboardInterrupt
        return load(name, options)

    monkeypatch.setattr("mull.cli.chat.load", load_or_stop)
    for line in (f"/model {name}", "And now?", "/retry"):
        with pytest.raises(KeyboardInterrupt):
            session.handle(line, verbose=False)
        assert session.conversation.messages == said
    for line in ("/model", "/think off", f"/save {tmp_path / 'chat.md'}"):
        session.handle(line, verbose=False)
    assert f"with {smollm2_gguf.stem}" in (tmp_path / "chat.md").read_text()
    session.handle("And now?", verbose=False)
    assert session.conversation.messages[:2] == said
    assert len(session.conversation.messages) == 4
    session.loaded().close()
