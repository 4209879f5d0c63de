"""AdamW and Muon against plain torch.optim, the schedule, and state that comes back exactly."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from train_parts import DEEPSEEK, LLAMA, fresh_model, packed

from mull.errors import TrainError
from mull.model import CausalLM
from mull.train.algorithms import sft
from mull.train.muon import orthogonalised
from mull.train.optimiser import Updater, rate_factor
from mull.train.recipe_parts import Optimiser
from mull.train.step import Learner

MUON = Optimiser(name="muon", learning_rate=0.02, adamw_learning_rate=0.01, weight_decay=0.1)
ADAMW = Optimiser(learning_rate=0.01, weight_decay=0.1)


def gradients(model: CausalLM, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=draw) for n, p in model.named_parameters()}


def moved(updater: Updater, model: CausalLM, seeds: range) -> None:
    for seed in seeds:
        for name, gradient in gradients(model, seed).items():
            model.get_parameter(name).grad = gradient
        updater.step()


@pytest.mark.parametrize("spec", [ADAMW, MUON], ids=["adamw", "muon"])
def test_every_parameter_moves_as_torchs_optimiser_would_move_it_alone(spec: Optimiser) -> None:
    spec = spec.model_copy(update={"warmup": 0})
    model, start = fresh_model(DEEPSEEK, mtp=True), fresh_model(DEEPSEEK, mtp=True)
    moved(Updater(model.named_parameters(), spec, 3), model, range(3))
    for name, parameter in start.named_parameters():
        is_table = "embed" in name or "lm_head" in name
        is_muons = spec.name == "muon" and parameter.ndim >= 2 and not is_table
        is_muons = is_muons and not name.endswith("mlp.gate.weight")
        decay = 0.1 if parameter.ndim >= 2 and not is_table else 0.0
        matrices = parameter.data.unbind() if parameter.ndim == 3 else [parameter.data]
        for index, matrix in enumerate(matrices):
            alone = torch.nn.Parameter(matrix.clone())
            if is_muons:
                optimiser = torch.optim.Muon([alone], lr=0.02, weight_decay=0.1, momentum=0.95)
            else:
                optimiser = torch.optim.AdamW(
                    [alone], lr=0.01, betas=(0.9, 0.95), weight_decay=decay
                )
            for seed in range(3):
                gradient = gradients(start, seed)[name]
                alone.grad = gradient[index] if parameter.ndim == 3 else gradient
                optimiser.step()
            result = model.get_parameter(name)
            result = result[index] if parameter.ndim == 3 else result
            # torch's Muon works in bfloat16, ours in float32.
            tolerance = 1e-3 if is_muons else 1e-6
            torch.testing.assert_close(result, alone, rtol=1e-4, atol=tolerance, msg=name)


@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 24, 10), (3, 10, 24), (2, 1, 7)])
def test_orthogonalising_moves_singular_values_only_as_the_polynomial_says(
    shape: tuple[int, int, int],
) -> None:
    a, b, c = coefficients = (3.4445, -4.7750, 2.0315)
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    s = s / s.norm(dim=1, keepdim=True)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    result = orthogonalised(matrices, coefficients, 5, 1e-7)
    torch.testing.assert_close(result.double(), u * s[:, None] @ v, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [ADAMW, MUON], ids=["adamw", "muon"])
def test_reloaded_state_goes_on_bit_identically(spec: Optimiser) -> None:
    spec = spec.model_copy(update={"warmup": 3, "decay": 0.5})
    batches = [packed([9, 4, 12], seed) for seed in range(4)]
    whole = fresh_model(DEEPSEEK, mtp=True)
    learner = Learner(whole, spec, 4, mtp_weight=0.3)
    for batch in batches:
        learner.step([batch], sft)

    first = fresh_model(DEEPSEEK, mtp=True)
    before = Learner(first, spec, 4, mtp_weight=0.3)
    for batch in batches[:2]:
        before.step([batch], sft)
    tensors, rest = before.state()
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    rest = json.loads(json.dumps(rest))
    second = fresh_model(DEEPSEEK, mtp=True, seed=5)
    second.load_state_dict(first.state_dict())
    after = Learner(second, spec, 4, mtp_weight=0.3)
    after.load_state(saved, rest)
    assert after.steps_done == 2
    for batch in batches[2:]:
        after.step([batch], sft)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
    final = after.state()[0]
    for name, tensor in learner.state()[0].items():
        assert torch.equal(final[name], tensor), name


def test_state_of_other_parameters_is_refused() -> None:
    deepseek, llama = fresh_model(DEEPSEEK), fresh_model(LLAMA)
    updater = Updater(deepseek.named_parameters(), ADAMW, 3)
    moved(updater, deepseek, range(1))
    other = Updater(llama.named_parameters(), ADAMW, 3)
    with pytest.raises(TrainError, match="lacks"):
        other.load_state(*updater.state())
    with pytest.raises(TrainError, match="'muon'"):
        Updater(llama.named_parameters(), MUON, 3).load_state(*updater.state())
    wider = fresh_model({**LLAMA, "vocab_size": 51})
    moved(other, llama, range(1))
    with pytest.raises(TrainError, match="embed_tokens"):
        Updater(wider.named_parameters(), ADAMW, 3).load_state(*other.state())


@settings(max_examples=60, deadline=None)
@given(
    warmup=st.integers(0, 20),
    total=st.integers(1, 100),
    decay=st.floats(0, 1),
    final=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_the_schedule_rises_stays_and_falls_to_its_end(
    warmup: int, total: int, decay: float, final: float, schedule: str
) -> None:
    falls = {"decay": decay, "final": final} if decay and schedule != "constant" else {}
    spec = Optimiser(warmup=warmup, schedule=schedule if falls else "constant", **falls)
    factors = [rate_factor(spec, step, total) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in factors)
    flat = range(min(warmup, total), int(total - spec.decay * total) - 1)
    assert all(factors[step] == 1.0 for step in flat)
    if not falls:
        assert factors == sorted(factors)
    elif decay * total >= 1 and warmup < total:
        assert factors[-1] == pytest.approx(final)


def test_the_rate_follows_the_schedule() -> None:
    model = fresh_model(LLAMA)
    spec = Optimiser(learning_rate=0.5, warmup=1, decay=0.5, final=0.1, schedule="linear")
    learner = Learner(model, spec, 4)
    rates = [learner.step([packed([6])], sft).learning_rate for _ in range(4)]
    assert rates == pytest.approx([0.25, 0.5, 0.275, 0.05])


def test_nothing_to_train_is_refused() -> None:
    model = fresh_model(LLAMA).requires_grad_(False)
    with pytest.raises(TrainError, match="nothing to train"):
        Updater(model.named_parameters(), ADAMW, 3)
