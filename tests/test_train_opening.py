"""A model that learnt to go on from an opened thinking is saved with a template that opens it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from text_vocabularies import QWEN, tiny_metadata
from train_run_parts import TASK, fingerprint, on_one_thread

from mull.cli import main
from mull.model.config import ModelConfig
from mull.model.transformer import CausalLM
from mull.text import ChatTemplate, Tokenizer, hf_tokenizer_files
from mull.text.template_chatml import ChatMLTemplate
from mull.train.recipe import Recipe
from mull.train.recipe_file import load_recipe
from mull.train.run import run_recipe
from mull.train.session import Keeper, StopAsked
from mull.weights import save_folder

LEARN = "kind = 'sft'\nsteps = 1\nbatch_tokens = 256\nmax_length = 128\n"
DIRECT = "data = [{ task = 'parity', forms = { direct = 1.0, chat = 0.0, worked = 0.5 } }]"
RL = (
    "kind = 'rl'\ntask = 'parity'\nsteps = 1\nquestions = 2\ngroup = 2\n"
    "sampling = { max_tokens = 8 }\n"
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    yield from on_one_thread()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of bytes whose chat template is plain ChatML."""
    torch.manual_seed(0)
    config = ModelConfig.from_dict(
        {
            "model_type": "qwen2",
            "vocab_size": 259,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 256,
            "eos_token_id": 257,
        }
    )
    files = hf_tokenizer_files(tiny_metadata(QWEN[0], [], ChatMLTemplate.source))
    folder = tmp_path_factory.mktemp("models") / "base"
    save_folder(CausalLM(config), folder, dtype=torch.float32, tokenizer_files=files)
    return folder


def recipe_of(folder: Path, base: Path, *stages: tuple[str, str]) -> Recipe:
    said = {"role": "assistant", "content": "odd"}
    asked = [{"role": "user", "content": "3?"}]
    later = [*asked, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nodd"}]
    chats = {
        "plain.jsonl": [[*asked, said]] * 2,
        "thought.jsonl": [[*asked, said], [*asked, said | {"reasoning_content": "hm"}]],
        "inside.jsonl": [[*later, *asked, said]],
    }
    for name, lines in chats.items():
        text = "\n".join(json.dumps({"messages": messages}) for messages in lines)
        (folder / name).write_text(text)
    (folder / "parity.py").write_text(TASK)
    tables = "".join(
        f"\n[[stages]]\nname = '{name}'\nstart = 'model'\n{body}\n" for name, body in stages
    )
    path = folder / "recipe.toml"
    path.write_text(
        f"name = 'mine'\nmodel = {{ base = '{base}' }}\ntasks.parity.file = 'parity.py'\n{tables}"
    )
    return load_recipe(path)


def template_of(folder: Path) -> ChatTemplate:
    return ChatTemplate.for_tokenizer(Tokenizer.from_folder(folder))


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = recipe_of(
        folder,
        base,
        ("plain", LEARN + "data = [{ chat = ['plain.jsonl'] }]"),
        ("direct", LEARN + DIRECT),
        ("thought", LEARN + "data = [{ chat = ['plain.jsonl', 'thought.jsonl'] }]"),
        ("inside", LEARN + "data = [{ chat = ['inside.jsonl'] }]"),
        ("after", LEARN.replace("sft", "pretrain") + DIRECT + "\n"),
        ("zero", RL),
        ("traces", LEARN + "data = [{ task = 'parity' }]"),
    )
    stages = [
        stage.model_copy(update={"start": "thought"}) if stage.name == "after" else stage
        for stage in recipe.stages
    ]
    recipe = recipe.model_copy(update={"stages": tuple(stages)})
    assert run_recipe(recipe, folder / "out").status == "done"
    return folder / "out"


def test_what_was_trained_to_go_on_from_an_opened_thinking_opens_it(finished: Path) -> None:
    opens = {
        path.name: template_of(path).opens_thinking for path in (finished / "stages").iterdir()
    }
    assert opens == {
        "plain": False,
        "direct": False,
        "thought": True,
        "inside": True,
        "after": True,
        "zero": True,
        "traces": True,
    }
    assert template_of(finished / "final").thinks


def test_prompts_are_those_of_the_training(base: Path, finished: Path) -> None:
    before, after = template_of(base), template_of(finished / "final")
    asked = [{"role": "user", "content": "3?"}]
    assert after.render(asked) == before.render(asked, thinking=True)
    assert after.render(asked, thinking=False) == before.render(asked, thinking=False)
    names = ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json")
    for name in names:
        assert (finished / "stages" / "plain" / name).read_bytes() == (base / name).read_bytes()


def test_the_result_thinks_when_it_is_asked_unless_told_not_to(
    finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def ask(stage: str, *more: str) -> dict[str, dict[str, int] | str]:
        words = ["ask", "3?", "-m", str(finished / stage), "--json", "--seed", "1"]
        assert main([*words, "--max-tokens", "48", *more]) == 0
        return json.loads(capfd.readouterr().out)

    thought = ask("final", "--think-budget", "8")
    assert thought["thinking"]
    assert thought["answer"]
    assert 1 <= thought["usage"]["reasoning_tokens"] <= 9  # type: ignore[index]
    for at_once in (ask("final", "--no-think"), ask("stages/plain", "--think-budget", "8")):
        assert at_once["thinking"] == ""
        assert at_once["answer"]


@pytest.mark.parametrize("opens", [True, False])
def test_a_run_that_its_budget_ends_or_that_goes_on_saves_the_same(
    base: Path, tmp_path: Path, opens: bool
) -> None:
    name = "thought" if opens else "plain"
    body = LEARN.replace("steps = 1", "steps = 2") + f"data = [{{ chat = ['{name}.jsonl'] }}]"
    recipe, out = recipe_of(tmp_path, base, ("one", body)), tmp_path / "out"
    stepped = Keeper.stepped

    def spent(self: Keeper, step: int, scores: dict[str, float] | None = None) -> None:
        stepped(self, step, scores)
        raise StopAsked("budget")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "stepped", spent)
        assert run_recipe(recipe, out).status == "budget"
    assert template_of(out / "final").opens_thinking == opens
    assert run_recipe(recipe, out, resume=True).status == "done"
    assert template_of(out / "final").opens_thinking == opens
    run_recipe(recipe, tmp_path / "whole")
    assert fingerprint(out) == fingerprint(tmp_path / "whole")
