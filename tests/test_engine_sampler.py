"""The sampler draws from exactly the distribution that transformers' processors leave.

The noise is replaced by an even grid over [0, 1): each token must then be drawn as often as its
probability says, to within one draw, which is stricter than any statistical test.
"""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mull import kernels
from mull.engine import sampler, torch_draw
from mull.engine.request import Request, SamplingParams
from mull.engine.sequence import Sequence
from mull.errors import ModelError

PROMPT = [1, 5, 9, 9, 200]
UNIFORM_7_0_0 = 0.304170625270892
ANSWER = [5, 7, 7, 7, 250]


@pytest.fixture(params=["native", "torch"])
def way(request, monkeypatch):
    """Where tokens are drawn: in native code where there is any, on other devices in torch."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "can_draw", lambda _logits: False)
    return request.param


def make_sequence(params: SamplingParams, seed: int = 0, answer: list[int] = ANSWER) -> Sequence:
    seq = Sequence(0, 0, 0, Request(PROMPT, params), seed)
    for token in answer:
        seq.append(token)
    return seq


def make_logits(vocabulary: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocabulary)
    return torch.randn(vocabulary, generator=generator) * spread


def reference(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Probabilities by transformers' processors, penalties of the OpenAI API by their formula."""
    scores = logits.clone()[None]
    if params.repetition_penalty != 1.0:
        penalty = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
        scores = penalty(torch.tensor([PROMPT + ANSWER]), scores)
    for token in set(ANSWER):
        count = ANSWER.count(token)
        scores[0, token] -= params.presence_penalty + count * params.frequency_penalty
    for token, bias in params.logit_bias.items():
        scores[0, token] += bias
    steps = [TemperatureLogitsWarper(params.temperature)]
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    return LogitsProcessorList(steps)(torch.tensor([[0]]), scores)[0].double().softmax(-1)


KINDS = {
    "plain": {},
    "cool": {"temperature": 0.3},
    "hot": {"temperature": 2.5},
    "top_k": {"top_k": 5},
    "top_k_of_one": {"top_k": 1},
    "large_top_k": {"top_k": 130},
    "top_k_of_all": {"top_k": 10_000},
    "top_p": {"top_p": 0.9},
    "tiny_top_p": {"top_p": 1e-6},
    "min_p": {"min_p": 0.02},
    "small_min_p": {"min_p": 1e-5},
    "recommended": {"temperature": 0.6, "top_p": 0.95},
    "all_filters": {"temperature": 1.3, "top_k": 90, "top_p": 0.8, "min_p": 0.01},
    "top_k_and_top_p": {"top_k": 20, "top_p": 0.5},
    "top_p_and_min_p": {"top_p": 0.99, "min_p": 0.001},
    "repetition": {"repetition_penalty": 1.5},
    "presence_and_frequency": {"presence_penalty": 0.7, "frequency_penalty": -0.4},
    "all_penalties": {
        "repetition_penalty": 0.8,
        "presence_penalty": -1.0,
        "frequency_penalty": 0.6,
        "logit_bias": {5: 2.0, 11: -100.0, 200: 0.5},
        "top_p": 0.9,
    },
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("vocabulary", "spread"), [(300, 4.0), (5001, 6.0), (5001, 1.0)])
@pytest.mark.usefixtures("way")
def test_tokens_are_drawn_as_often_as_their_probability_says(kind, vocabulary, spread, monkeypatch):
    draws = 1000
    monkeypatch.setattr(sampler, "uniform", lambda seed, *_: (seed + 0.5) / draws)
    params = SamplingParams(**KINDS[kind])
    logits = make_logits(vocabulary, spread)
    seqs = [make_sequence(params, seed) for seed in range(draws)]
    tokens, _ = sampler.sample(logits.repeat(draws, 1), seqs)
    counts = torch.bincount(torch.tensor(tokens), minlength=vocabulary)
    expected = reference(logits, params) * draws
    assert (counts - expected).abs().max() <= 1.01
    assert counts[expected == 0].sum() == 0


@pytest.mark.parametrize("vocabulary", [40, 300, 5000, 20_001])
def test_the_best_few_are_the_best_few(vocabulary):
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(4, vocabulary, generator=generator)
    padded = torch.nn.functional.pad(weights, (0, -vocabulary % torch_draw.BLOCK))
    size = min(torch_draw.FEW, vocabulary)
    values, ids = torch_draw._best(padded, size)
    expected = weights.topk(size)
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


@pytest.mark.parametrize("vocabulary", [300, 384, 4096])
@pytest.mark.usefixtures("way")
def test_greedy_takes_the_largest_and_the_lowest_of_equal_ones(vocabulary):
    logits = make_logits(vocabulary, 3.0).repeat(5, 1)
    logits[1, [290, 7, 131]] = 50.0
    logits[2] = 0.0
    logits[3] = float("-inf")
    logits[3, 255] = -3.0
    greedy = [make_sequence(SamplingParams(temperature=0)) for _ in range(5)]
    best = int(logits[0].argmax())
    assert sampler.sample(logits, greedy)[0] == [best, 7, 0, 255, best]


@pytest.mark.usefixtures("way")
def test_a_row_is_the_same_alone_and_among_others_of_every_kind(monkeypatch):
    drawn: list[int] = []  # rows that were drawn with torch's operations
    draw = sampler.draw

    def watched(logits_BV, seqs, drafted):
        drawn.extend(seq.seed for seq in seqs)
        return draw(logits_BV, seqs, drafted)

    monkeypatch.setattr(sampler, "draw", watched)
    vocabulary = 5001
    logits = torch.stack([make_logits(vocabulary, 0.5 + 0.3 * i) for i in range(len(KINDS))])
    kinds = [*KINDS.values()]
    for trial in range(20):
        seqs = [make_sequence(SamplingParams(**k), seed=trial) for k in kinds]
        together, _ = sampler.sample(logits.clone(), seqs)
        # The two ways differ in the last bit of a weight, which chance would hardly show here.
        among_others, drawn[:] = len(drawn), []
        alone = [
            sampler.sample(row.clone()[None], [seq])[0][0]
            for row, seq in zip(logits, seqs, strict=True)
        ]
        assert together == alone
        assert len(drawn) == among_others
        drawn.clear()


def test_greedy_penalised_and_drawn_rows_share_a_batch():
    logits = make_logits(300, 2.0).repeat(3, 1)
    ban = {int(logits[0].argmax()): -100.0}
    seqs = [
        make_sequence(SamplingParams(temperature=0)),
        make_sequence(SamplingParams(temperature=0, logit_bias=ban)),
        make_sequence(SamplingParams(temperature=1.0, top_k=1)),
    ]
    expected = logits[0].topk(2).indices.tolist()
    assert sampler.sample(logits, seqs)[0] == [expected[0], expected[1], expected[0]]


@pytest.mark.parametrize("kind", ["plain", "recommended", "all_penalties", "cool"])
def test_a_row_after_drafted_tokens_draws_as_if_they_had_been_accepted(kind):
    params = SamplingParams(**KINDS[kind])
    logits = make_logits(300, 2.0)
    drafts = [(), (7,), (7, 9), (7, 9, 250)]
    seq = make_sequence(params, seed=5)
    together, _ = sampler.sample(logits.repeat(4, 1), [seq] * 4, drafts)
    accepted = [make_sequence(params, 5, [*ANSWER, *draft]) for draft in drafts]
    one_by_one = [sampler.sample(logits.clone()[None], [seq])[0][0] for seq in accepted]
    assert together == one_by_one
    assert seq.token_ids == PROMPT + ANSWER


def test_noise_is_even_and_independent_of_its_neighbours_in_every_argument():
    count = 4000
    for values in (
        [sampler.uniform(seed, 0, 0) for seed in range(count)],
        [sampler.uniform(1, index, 0) for index in range(count)],
        [sampler.uniform(1, 0, position) for position in range(count)],
    ):
        x = torch.tensor(values, dtype=torch.float64)
        assert x.min() >= 0
        assert x.max() < 1
        cells = torch.histc(x, 20, 0, 1)
        # chi-square with 19 degrees of freedom: 43.8 is exceeded once in a thousand.
        assert ((cells - count / 20) ** 2 / (count / 20)).sum() < 43.8
        assert torch.corrcoef(torch.stack([x[1:], x[:-1]]))[0, 1].abs() < 0.06


def test_noise_is_the_same_everywhere_and_for_ever():
    assert sampler.uniform(7, 0, 0) == pytest.approx(UNIFORM_7_0_0, abs=1e-15)
    assert sampler.uniform(-1, 2, 3) == sampler.uniform(2**64 - 1, 2, 3)


@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
@pytest.mark.parametrize("vocabulary", [100, 2 * torch_draw.BLOCK])
@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_p=0.9)]
)
def test_damaged_logits_are_refused_not_sampled(params, vocabulary, damage):
    logits_BV = make_logits(vocabulary, 1.0).repeat(2, 1)
    logits_BV[1, 7] = damage
    with pytest.raises(ModelError, match="damaged"):
        sampler.sample(logits_BV, [make_sequence(params), make_sequence(params)])


def test_a_certain_token_is_always_drawn():
    logits = torch.full((50, 5001), -1e9)
    logits[:, 4999] = 1e9
    for kind in KINDS.values():
        params = SamplingParams(**{k: v for k, v in kind.items() if k != "logit_bias"})
        seqs = [make_sequence(params, seed) for seed in range(50)]
        assert set(sampler.sample(logits.clone(), seqs)[0]) == {4999}


def test_every_position_sample_and_seed_draws_anew():
    flat = torch.zeros(1, 5001)

    def draw(seed: int = 0, index: int = 0, answered: int = 0) -> int:
        seq = make_sequence(SamplingParams(), seed, [1] * answered)
        seq.index = index
        return sampler.sample(flat.clone(), [seq])[0][0]

    for tokens in (
        [draw(answered=i) for i in range(50)],
        [draw(index=i) for i in range(50)],
        [draw(seed=i) for i in range(50)],
    ):
        assert len(set(tokens)) > 45
