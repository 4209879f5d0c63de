"""The commands of a chat, on a pipe."""

from pathlib import Path

from mull_command import run_mull


def test_a_conversation_that_cannot_be_saved_goes_on(smollm2_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    names = ["file/chat.md", "absent/chat.md", "~no_such_user_x/chat.md", "a" * 300, "a\0b", "."]
    lines = [*(f"/save {name}" for name in names), "What is the capital of France?"]
    done = run_mull("chat", "--max-tokens", "8", stdin="\n".join(lines), cwd=tmp_path)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("mull: ")]
    assert len(errors) == len(names), done.stderr
    assert "Paris" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
