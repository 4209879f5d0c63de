"""Multi-token prediction as a drafter: the guesses are the module's own, and change no answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_parts import (
    generate,
    make_engine,
    tiny_tokenizer,
)
from mtp_parts import DENSE, MOE, Checked, eager_engine, mtp_model
from test_engine_speculation import KINDS, requests_of

from mull.engine.engine import Engine
from mull.engine.request import Output
from mull.model.transformer import CausalLM
from mull.text.tokenizer import Tokenizer

SHAPES = {"moe": MOE, "dense": DENSE}
MODELS = [f"{shape} {kind}" for shape in SHAPES for kind in ("plain", "fp32", "bf16", "q8")]


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


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> CausalLM:
    shape, precision = request.param.split()
    return mtp_model(SHAPES[shape], precision)


@pytest.fixture(scope="module")
def moe() -> CausalLM:
    return mtp_model(MOE, "fp32")


def plain_engine(model: CausalLM, tokenizer: Tokenizer, **options: Any) -> Engine:
    return make_engine(model, tokenizer, speculation="off", **options)


def answers(outputs: list[Output]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("kind", list(KINDS))
def test_with_and_without_mtp_every_token_is_the_same(model, tokenizer, kind):
    requests = requests_of(kind, count=4, max_tokens=20)
    expected = answers(generate(plain_engine(model, tokenizer), requests))
    engine = eager_engine(model, tokenizer)
    assert answers(generate(engine, requests)) == expected
    for request, ids in zip(requests, expected, strict=True):
        (alone,) = generate(engine, [request])
        assert alone.token_ids == ids
    assert engine.counters.drafted_tokens > 20
    assert engine.counters.used_blocks == 0


def test_the_guess_is_what_the_module_says_over_the_whole_sequence(model, tokenizer):
    """Drafts are rejected nearly always here, at one to four tokens."""
    engine = eager_engine(model, tokenizer, cache_dtype=torch.float32)
    is_exact = next(model.mtp.parameters()).dtype == torch.float32
    checked = Checked(engine, tolerance=2e-3 if is_exact else 0.1)
    requests = [*requests_of("greedy", count=3), *requests_of("recommended", count=2)]
    for request in requests:
        engine.submit(request)
    checked.drain()
    assert len(checked.places) == 5
    assert all(len(places) > 25 for places in checked.places.values())
    assert checked.deepest >= 3
