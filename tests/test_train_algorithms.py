"""Losses of the algorithms against TRL's own code; advantages, weights and splits.

The oracle is `GRPOTrainer._compute_loss` itself, run on a stand-in for the trainer that hands it
the log-probabilities; everything else (ratios, clipping, divergence, means) is TRL's.
"""

import random
from collections import defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl import GRPOTrainer

from mull.train.algorithms import ALGORITHMS, algorithm_of
from mull.train.algorithms.parts import group_advantages
from mull.train.batch import Episode
from mull.train.objective import Prediction, Totals
from mull.train.recipe_stages import Rl
from mull.train.rl_batch import RlBatch

WIDTH, VOCABULARY, MAX_TOKENS = 6, 11, 12
# Ours -> TRL's (loss_type, importance_sampling_level).
TRL = {
    "grpo": ("grpo", "token"),
    "dr_grpo": ("dr_grpo", "token"),
    "dapo": ("dapo", "token"),
    "gspo": ("grpo", "sequence"),
    "cispo": ("cispo", "token"),
}


@dataclass
class Case:
    """Answers of unequal length behind prompts, all log-probabilities as [N, C] with a mask."""

    prompts: list[int]
    lengths: list[int]
    hidden_TD: Tensor
    head_VD: Tensor
    ids_T: Tensor
    advantage_N: Tensor
    mask_NC: Tensor
    old_NC: Tensor
    rollout_NC: Tensor
    reference_NC: Tensor

    def logprobs(self) -> Tensor:
        """The policy's, padded, by plain autograd."""
        whole_NC, start = [], 0
        for prompt, length in zip(self.prompts, self.lengths, strict=True):
            rows = slice(start + prompt - 1, start + prompt + length - 1)
            targets_C = self.ids_T[start + prompt : start + prompt + length]
            logprobs_CV = (self.hidden_TD[rows] @ self.head_VD.T).log_softmax(-1)
            own_C = logprobs_CV.gather(1, targets_C[:, None])[:, 0]
            whole_NC.append(torch.nn.functional.pad(own_C, (0, max(self.lengths) - length)))
            start += prompt + length
        return torch.stack(whole_NC)


def case(seed: int, *, spread: float = 0.4) -> Case:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    answers = draw.randint(2, 7)
    prompts = [draw.randint(1, 4) for _ in range(answers)]
    lengths = [draw.randint(1, MAX_TOKENS) for _ in range(answers)]
    total = sum(prompts) + sum(lengths)
    shape = (answers, max(lengths))
    mask_NC = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    made = Case(
        prompts,
        lengths,
        torch.randn(total, WIDTH, dtype=torch.float64, requires_grad=True),
        torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True),
        torch.randint(0, VOCABULARY, (total,)),
        torch.randn(answers),
        mask_NC,
        *torch.zeros(3, *shape),
    )
    now_NC = made.logprobs().detach().float()
    for name in ("old_NC", "rollout_NC", "reference_NC"):
        setattr(made, name, (now_NC + spread * torch.randn(shape)) * mask_NC)
    return made


def trl_loss(made: Case, name: str, *, on_policy: bool, **settings: Any) -> Tensor:
    """What TRL's trainer would minimise for this case."""
    loss_type, level = TRL[name]
    logprob_NC = made.logprobs()
    rollout = settings.pop("rollout", False)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            logprob_NC,
            torch.zeros_like(logprob_NC),
            None,
        ),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        loss_type=loss_type,
        beta=settings["kl"],
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        epsilon_low=settings["clip_low"],
        # TRL's bound of CISPO is the whole ratio's, ours (and the paper's) what it may exceed 1 by.
        epsilon_high=settings["clip_high"] + (loss_type == "cispo"),
        use_vllm=rollout,
        vllm_importance_sampling_correction=rollout,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_TOKENS,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    old_NC = logprob_NC.detach() if on_policy else made.old_NC
    ratio_NC = (old_NC - made.rollout_NC).exp().clamp(max=settings["importance_cap"])
    ids_NC = torch.zeros(made.mask_NC.shape, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids_NC[:, :1],
        "prompt_mask": ids_NC[:, :1],
        "completion_ids": ids_NC,
        "completion_mask": made.mask_NC.long(),
        "advantages": made.advantage_N,
        "ref_per_token_logps": made.reference_NC,
        "num_items_in_batch": made.mask_NC.sum(),
        "importance_sampling_ratio": ratio_NC,
    }
    if not on_policy:
        inputs["old_per_token_logps"] = made.old_NC
    loss: Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


def episodes(made: Case, *, rollout: bool) -> list[Episode]:
    """Without a rollout's log-probabilities the importance weights are 1: rollout is then old."""
    result, start = [], 0
    for index, (prompt, length) in enumerate(zip(made.prompts, made.lengths, strict=True)):
        source = made.rollout_NC if rollout else made.old_NC
        result.append(
            Episode(
                ids=made.ids_T[start : start + prompt + length].tolist(),
                learn=[False] * prompt + [True] * length,
                advantage=float(made.advantage_N[index]),
                logprobs=[0.0] * prompt + source[index, :length].tolist(),
            )
        )
        start += prompt + length
    return result


def at_rows(made: Case, values_NC: Tensor) -> Tensor:
    """[T], aligned with the prediction, out of [N, C]."""
    parts = [
        torch.cat((torch.zeros(prompt - 1), values_NC[i, :length], torch.zeros(1)))
        for i, (prompt, length) in enumerate(zip(made.prompts, made.lengths, strict=True))
    ]
    return torch.cat(parts)


def our_loss(made: Case, name: str, *, on_policy: bool, rollout: bool, **settings: Any) -> Tensor:
    algorithm = ALGORITHMS[name](max_tokens=MAX_TOKENS, **settings)
    batch = RlBatch.of(episodes(made, rollout=rollout), algorithm.weights(made.lengths))
    batch = batch.with_reference(at_rows(made, made.reference_NC))
    if not on_policy:
        batch = batch.with_old(at_rows(made, made.old_NC))
    elif not rollout:
        current_T = at_rows(made, made.logprobs().detach())
        batch = replace(batch, rollout_logprob_T=current_T)
    rows_L = batch.learn_T.nonzero()[:, 0]
    policy = Prediction(made.hidden_TD[rows_L], made.head_VD, batch.targets_T[rows_L], rows_L)
    whole = Totals(len(batch.lengths), batch.tokens, len(rows_L))
    return algorithm(policy, batch, whole).loss


@pytest.mark.parametrize("rollout", [False, True])
@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("kl", [0.0, 0.04])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_loss_and_gradients_equal_trls(
    name: str, kl: float, on_policy: bool, rollout: bool
) -> None:
    for seed in range(8):
        made = case(seed)
        chosen = {"kl": kl, "clip_low": 0.1, "clip_high": 0.15, "importance_cap": 1.2}
        ours = our_loss(made, name, on_policy=on_policy, rollout=rollout, **chosen)
        theirs = trl_loss(made, name, on_policy=on_policy, rollout=rollout, **chosen)
        assert abs(ours - theirs) < 1e-6
        tensors = (made.hidden_TD, made.head_VD)
        for mine, other in zip(
            torch.autograd.grad(ours, tensors), torch.autograd.grad(theirs, tensors), strict=True
        ):
            assert other.abs().max() > 1e-3
            assert (mine - other).abs().max() < 1e-6


@pytest.mark.parametrize("name", ALGORITHMS)
def test_clipping_is_active_in_these_cases(name: str) -> None:
    """The comparison with TRL would be idle if no bound were ever reached."""
    chosen = {"kl": 0.0, "importance_cap": 2.0}
    tight = {"clip_low": 0.02, "clip_high": 0.02, **chosen}
    loose = {"clip_low": 50.0, "clip_high": 50.0, **chosen}
    losses = [
        torch.stack(
            [our_loss(case(s), name, on_policy=False, rollout=False, **kind) for s in (0, 1)]
        )
        for kind in (tight, loose)
    ]
    assert (losses[0] - losses[1]).abs().min() > 1e-4


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("grpo", 0.2, 0.2),
        ("dr_grpo", 0.2, 0.2),
        ("dapo", 0.2, 0.28),
        ("cispo", 0.2, 0.28),
        ("gspo", 3e-4, 4e-4),
    ],
)
def test_bounds_are_the_papers_unless_the_recipe_says_otherwise(
    name: Any, low: float, high: float
) -> None:
    stage = Rl(kind="rl", name="rl", task="sums", steps=1, algorithm=name)
    algorithm = algorithm_of(stage)
    assert (algorithm.clip_low, algorithm.clip_high) == (low, high)
    algorithm = algorithm_of(stage.model_copy(update={"clip_high": 0.5}))
    assert (algorithm.clip_low, algorithm.clip_high) == (low, 0.5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_without_episodes_is_nothing_to_learn(name: str) -> None:
    assert ALGORITHMS[name]().pack([], 100) == []


def some_episodes(seed: int, *, groups: int = 3, size: int = 4) -> list[Episode]:
    draw = random.Random(seed)
    made = []
    for group in range(groups):
        for _ in range(size):
            prompt, answer = draw.randint(1, 4), draw.randint(1, 9)
            made.append(
                Episode(
                    ids=[draw.randrange(VOCABULARY) for _ in range(prompt + answer)],
                    learn=[False] * prompt + [True] * answer,
                    group=group,
                    reward=float(draw.randint(0, 1)),
                    logprobs=[0.0] * prompt + [-draw.random() for _ in range(answer)],
                )
            )
    return made


def split_loss(name: str, seed: int, batch_tokens: int) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of a step packed into batches of at most so many tokens."""
    torch.manual_seed(0)
    table_VD = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True)
    head_VD = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True)
    algorithm = ALGORITHMS[name](max_tokens=9)
    batches = algorithm.pack(algorithm.advantages(some_episodes(seed)).episodes, batch_tokens)
    whole = Totals(
        sum(len(b.lengths) for b in batches),
        sum(b.tokens for b in batches),
        int(sum(b.learn_T.sum() for b in batches)),
    )
    loss = (table_VD * 0).sum() + (head_VD * 0).sum()
    for batch in batches:
        rows_L = batch.learn_T.nonzero()[:, 0]
        hidden_LD = table_VD[batch.ids_T[rows_L]]
        policy = Prediction(hidden_LD, head_VD, batch.targets_T[rows_L], rows_L)
        loss = loss + algorithm(policy, batch, whole).loss
    return loss, list(torch.autograd.grad(loss, (table_VD, head_VD)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), batch_tokens=st.integers(1, 150))
@pytest.mark.parametrize("name", ALGORITHMS)
def test_any_split_into_batches_gives_the_same_gradient(
    name: str, seed: int, batch_tokens: int
) -> None:
    whole, whole_gradients = split_loss(name, seed, 10**9)
    parts, part_gradients = split_loss(name, seed, batch_tokens)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-8)
    for mine, other in zip(part_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


def test_advantages_are_those_of_the_paper() -> None:
    rewards_G = torch.tensor([1.0, 0.0, 0.0, 1.1])
    expected = (rewards_G - rewards_G.mean()) / (rewards_G.std() + 1e-4)
    torch.testing.assert_close(group_advantages(rewards_G, scale_by_std=True), expected)
    torch.testing.assert_close(
        group_advantages(rewards_G, scale_by_std=False), rewards_G - rewards_G.mean()
    )


@settings(max_examples=50, deadline=None)
@given(rewards=st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=16))
def test_advantages_of_a_group_sum_to_zero_and_keep_its_order(rewards: list[float]) -> None:
    rewards_G = torch.tensor(rewards)
    for scale_by_std in (False, True):
        advantages_G = group_advantages(rewards_G, scale_by_std=scale_by_std)
        assert abs(advantages_G.sum()) < 1e-3
        order = rewards_G.argsort(stable=True)
        assert (advantages_G[order].diff() >= -1e-6).all()


def test_dead_groups_give_exact_zeros_and_are_reported() -> None:
    made = some_episodes(5)
    made = [replace(e, reward=0.1) if e.group == 1 else e for e in made]
    made = [replace(e, reward=float(i % 2)) if e.group != 1 else e for i, e in enumerate(made)]
    result = ALGORITHMS["grpo"]().advantages(made)
    assert (result.groups, result.dead) == (3, [1])
    for episode in result.episodes:
        assert (episode.advantage == 0.0) == (episode.group == 1)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_cannot_move_a_weight_is_not_computed_but_counts(name: str) -> None:
    algorithm = ALGORITHMS[name](max_tokens=9)
    made = [replace(e, advantage=1.0) for e in some_episodes(1)]
    masked = [replace(made[0], learn=[False] * len(made[0].ids)), *made[1:]]
    silent = [replace(made[0], advantage=0.0), *made[1:]]
    assert sum(len(b.lengths) for b in algorithm.pack(masked, 50)) == len(made) - 1
    assert sum(len(b.lengths) for b in algorithm.pack(silent, 50)) == len(made) - 1
    kept = algorithm.pack(silent, 10**9)[0]
    whole = algorithm.pack(made, 10**9)[0]
    assert set(kept.weight_T.tolist()) <= set(whole.weight_T.tolist())
    with_kl = replace(algorithm, kl=0.1)
    assert sum(len(b.lengths) for b in with_kl.pack(silent, 50)) == len(made)


def test_expert_choices_are_packed_only_where_all_episodes_have_them() -> None:
    made = [
        replace(e, advantage=1.0, experts=torch.zeros(2, len(e.ids), 3, dtype=torch.int16))
        for e in some_episodes(2)
    ]
    algorithm = ALGORITHMS["grpo"]()
    batch = algorithm.pack(made, 10**9)[0]
    assert batch.experts_MTS is not None
    assert batch.experts_MTS.shape == (2, batch.tokens, 3)
    assert algorithm.pack(made, 10**9, replay_routing=False)[0].experts_MTS is None
    made[3] = replace(made[3], experts=None)
    assert algorithm.pack(made, 10**9)[0].experts_MTS is None
