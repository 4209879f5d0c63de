"""The training step: gradients against transformers, splits, MTP, balancing, replay, failures."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train_data_parts import tokenizer_folder
from train_parts import DEEPSEEK, LLAMA, SHAPES, example, fresh_model, packed
from transformers import AutoConfig, AutoModelForCausalLM

from mull.errors import TrainError
from mull.model import CausalLM, PackedSequences
from mull.train.algorithms import ALGORITHMS, TeacherDivergence, sft
from mull.train.batch import Batch, Episode, spread
from mull.train.flops import step_flops
from mull.train.lora import inject
from mull.train.models import Opened
from mull.train.objective import Objective, Prediction, Terms, Totals
from mull.train.recipe_parts import Balance, DataSpec, Lora, Optimiser
from mull.train.recipe_stages import Pretrain, Rl
from mull.train.reference import Reference
from mull.train.rl_batch import RlBatch
from mull.train.routing import Routing
from mull.train.scoring import Precision
from mull.train.stages.learn import learning_values
from mull.train.step import Learner
from mull.train.trainee import Trainee

SPEC = Optimiser(learning_rate=1e-3, warmup=0, clip=1e9)


def gradients_of(
    model: CausalLM, batches: Sequence[Batch], objective: Objective, **options: Any
) -> tuple[dict[str, Tensor], Any]:
    """(gradients by parameter name, report) of one step, taken just before the weights move."""
    learner = Learner(model, SPEC, 10, **options)
    found: dict[str, Tensor] = {}
    move = learner.updater.step

    def keep() -> None:
        found.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        move()

    learner.updater.step = keep  # type: ignore[method-assign]
    report = learner.step(batches, objective)
    return found, report


@pytest.mark.parametrize("spread_share", [0.0, 0.6])
@pytest.mark.parametrize("shape", SHAPES)
def test_sft_gradients_equal_transformers_on_the_same_packed_batch(
    shape: str, spread_share: float
) -> None:
    """transformers sees one row whose positions restart, with attention inside each document."""
    ours = fresh_model(SHAPES[shape])
    config = AutoConfig.for_model(**json.loads(json.dumps(ours.config.to_dict())))
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().train()
    theirs.load_state_dict(ours.state_dict())
    examples = [example(n, i, prompt=min(3, n)) for i, n in enumerate([13, 1, 40, 7, 22])]
    batch = Batch.pack(spread(examples, spread_share, seed=1))
    same_TT = batch.sequence_T[:, None] == batch.sequence_T[None]
    allowed_TT = same_TT & torch.ones_like(same_TT).tril()
    mask_TT = torch.zeros(allowed_TT.shape).masked_fill(~allowed_TT, torch.finfo().min)
    logits_TV = theirs(
        batch.ids_T[None],
        attention_mask=mask_TT[None, None],
        position_ids=batch.positions_T[None],
        use_cache=False,
    ).logits[0]
    labels_T = batch.targets_T.masked_fill(~batch.learn_T, -100)
    loss = torch.nn.functional.cross_entropy(logits_TV, labels_T)
    loss.backward()
    found, report = gradients_of(ours, [batch], sft)
    assert report.loss == pytest.approx(loss.item(), abs=1e-6)
    expected = dict(theirs.named_parameters())
    assert found.keys() == {n for n, p in expected.items() if p.grad is not None}
    for name, gradient in found.items():
        assert gradient.abs().max() > 0, name
        assert (gradient - expected[name].grad).abs().max() < 1e-5, name


def test_spread_positions_increase_within_twice_the_length_and_are_the_seeds() -> None:
    examples = [example(n, n) for n in (1, 2, 9, 40, 200)] * 20
    once, again = (spread(examples, 0.5, seed=3) for _ in range(2))
    far = [each for each in once if each.positions is not None]
    assert 30 <= len(far) <= 70
    for each in far:
        assert each.positions.diff().gt(0).all()
        assert 0 <= each.positions[0] <= each.positions[-1] <= 2 * len(each.ids)
    assert Batch.pack(once).positions_T.equal(Batch.pack(again).positions_T)
    assert not Batch.pack(once).positions_T.equal(Batch.pack(spread(examples, 0.5, 4)).positions_T)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_split_of_a_step_gives_the_same_gradients(shape: str) -> None:
    lengths = [5, 9, 1, 14, 3, 8]
    options: dict[str, Any] = {"mtp_weight": 0.3, "balance": Balance(sequence_weight=1e-2)}
    whole, report = gradients_of(
        fresh_model(SHAPES[shape], mtp=True), [packed(lengths)], sft, **options
    )
    parts = split(packed(lengths), [1, 3, 2])
    split_up, other = gradients_of(fresh_model(SHAPES[shape], mtp=True), parts, sft, **options)
    assert whole.keys() == split_up.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(split_up[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert other.loss == pytest.approx(report.loss, abs=1e-6)
    assert other.mtp_loss == (None if shape == "llama" else pytest.approx(report.mtp_loss))
    assert other.entropy == pytest.approx(report.entropy, abs=1e-5)
    assert other.router_load == report.router_load


def split(batch: Batch, counts: list[int]) -> list[Batch]:
    """The same sequences in batches of so many sequences each."""
    parts, sequence, token = [], 0, 0
    for count in counts:
        lengths = batch.lengths[sequence : sequence + count]
        rows = slice(token, token + sum(lengths))
        parts.append(
            Batch(
                batch.ids_T[rows],
                batch.targets_T[rows],
                batch.learn_T[rows],
                batch.sequence_T[rows] - sequence,
                batch.positions_T[rows],
                lengths,
            )
        )
        sequence, token = sequence + count, rows.stop
    return parts


@pytest.mark.parametrize("shape", SHAPES)
def test_checkpointing_changes_no_gradient_and_no_count(shape: str) -> None:
    batches = [packed([5, 9]), packed([14], 1)]
    options: dict[str, Any] = {"balance": Balance(sequence_weight=1e-2)}
    plain, report = gradients_of(fresh_model(SHAPES[shape]), batches, sft, **options)
    again, other = gradients_of(
        fresh_model(SHAPES[shape]), batches, sft, checkpointing=True, **options
    )
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert other.router_load == report.router_load


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_stays_near_float32_and_weights_stay_float32(shape: str) -> None:
    model = fresh_model(SHAPES[shape])
    exact, report = gradients_of(fresh_model(SHAPES[shape]), [packed([30, 12])], sft)
    rounded, other = gradients_of(model, [packed([30, 12])], sft, precision="bf16")
    assert other.loss == pytest.approx(report.loss, rel=0.02)
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        if ".gate." not in name and "experts" not in name:  # a near-tie may go the other way
            assert (rounded[name] - gradient).norm() < 0.4 * gradient.norm(), name
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_mtp_learns_the_token_two_ahead_within_its_sequence() -> None:
    """Equation 24 of the V3 report over each document alone."""
    model, lengths = fresh_model(DEEPSEEK, mtp=True), [6, 2, 1, 9]
    batch = packed(lengths, prompt=2)
    losses, hits, start = [], [], 0
    with torch.no_grad():
        for length in lengths:
            ids_T = batch.ids_T[start : start + length]
            start += length
            if length < 3:
                continue
            seqs = PackedSequences([length - 1])
            hidden_TD = model(ids_T[:-1], seqs)
            logits_TV = model.logits(model.mtp_hidden(hidden_TD, ids_T[1:], seqs))[:-1]
            losses.append(torch.nn.functional.cross_entropy(logits_TV, ids_T[2:], reduction="none"))
            hits.append(logits_TV.argmax(-1) == ids_T[2:])
    report = Learner(model, SPEC, 1, mtp_weight=0.3).step([batch], sft)
    assert report.mtp_loss == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)
    assert report.mtp_hits == pytest.approx(torch.cat(hits).float().mean().item())


def test_further_passes_of_mtp_learn_what_drafting_asks_of_it() -> None:
    """Pass k at place i goes on from pass k - 1 at place i - 1, within its sequence."""
    model, lengths, passes = fresh_model(DEEPSEEK, mtp=True), [6, 2, 1, 9], 3
    batch = packed(lengths, prompt=2)
    losses: list[list[Tensor]] = [[] for _ in range(passes)]
    start = 0
    with torch.no_grad():
        for length in lengths:
            ids_T = batch.ids_T[start : start + length]
            start += length
            if length < 3:
                continue
            seqs = PackedSequences([length - 1])
            first_TD = model(ids_T[:-1], seqs)
            hidden_TD = first_TD
            for found in losses:
                out_TD = model.mtp_hidden(hidden_TD, ids_T[1:], seqs)
                logits_TV = model.logits(out_TD)[:-1]
                found.append(
                    torch.nn.functional.cross_entropy(logits_TV, ids_T[2:], reduction="none")
                )
                hidden_TD = torch.cat((first_TD[:1], out_TD[:-1]))
    report = Learner(model, SPEC, 1, mtp_weight=0.3, mtp_passes=passes).step([batch], sft)
    expected = torch.stack([torch.cat(found).mean() for found in losses]).mean()
    assert report.mtp_loss == pytest.approx(expected.item(), abs=1e-5)


def test_only_mtp_may_learn_and_the_model_stays_to_the_bit() -> None:
    model = fresh_model(DEEPSEEK, mtp=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    still = Balance(rate=0.0)
    learner = Learner(model, SPEC, 4, mtp_weight=0.3, mtp_passes=2, only_mtp=True, balance=still)
    reports = [learner.step([packed([9, 5])], sft) for _ in range(3)]
    moved = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert moved
    assert all(name.startswith("mtp.") for name in moved)
    assert reports[-1].mtp_loss < reports[0].mtp_loss
    idle = learner.step([packed([2, 2])], sft)  # no token is two ahead
    assert (idle.step, idle.grad_norm) == (4, 0.0)
    with pytest.raises(TrainError, match="no multi-token prediction"):
        Learner(fresh_model(DEEPSEEK), SPEC, 1, mtp_weight=0.3, only_mtp=True)


def test_mtp_weight_scales_its_gradient_and_zero_trains_none_of_it() -> None:
    found = [
        gradients_of(fresh_model(DEEPSEEK, mtp=True), [packed([9, 5])], sft, mtp_weight=w)[0]
        for w in (0.1, 0.3, 0.0)
    ]
    name = "mtp.0.eh_proj.weight"
    torch.testing.assert_close(3 * found[0][name], found[1][name])
    assert not [name for name in found[2] if name.startswith("mtp.")]


def test_balancing_moves_the_bias_against_the_load_of_the_whole_step() -> None:
    model = fresh_model(DEEPSEEK)
    router = model.model.layers[1].mlp.gate
    router.e_score_correction_bias[:] = torch.tensor([0.5, 0.0, 0.0, -0.5])
    before = router.e_score_correction_bias.clone()
    learner = Learner(model, SPEC, 10, balance=Balance(rate=0.01))
    report = learner.step([packed([20]), packed([31], 1)], sft)
    shares = torch.tensor(report.router_load["model.layers.1.mlp"])
    assert shares.sum() == pytest.approx(1.0)
    expected = before + 0.01 * (0.25 - shares).sign()
    torch.testing.assert_close(router.e_score_correction_bias, expected)
    assert report.router_violation == pytest.approx(shares.max().item() * 4 - 1, abs=1e-5)


def test_balancing_evens_out_a_lopsided_router() -> None:
    model = fresh_model(DEEPSEEK)
    model.model.layers[1].mlp.gate.e_score_correction_bias[0] = 1.0
    learner = Learner(
        model, SPEC.model_copy(update={"learning_rate": 1e-9}), 60, balance=Balance(rate=0.05)
    )
    batch = packed([60, 60])
    first = learner.step([batch], sft).router_violation
    for _ in range(50):
        last = learner.step([batch], sft).router_violation
    assert first > 0.9
    assert last < 0.4


def test_a_recipe_sets_the_balance_of_what_learns_whole_and_other_routers_stand_still(
    tmp_path: Path,
) -> None:
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")

    def routing_of(stage: Pretrain | Rl, *, lora: bool = False) -> Routing:
        model = fresh_model({**DEEPSEEK, "vocab_size": 300}, mtp=True)
        if lora:
            inject(model, Lora(layers=("o_proj",)))
        opened = Opened(model, tokenizer)
        return Trainee(None, stage, 1, opened=opened).learner.routing  # type: ignore[arg-type]

    wanted = Balance(rate=0.0, sequence_weight=1e-4)
    base = Pretrain(kind="pretrain", name="base", steps=1, data=(DataSpec(task="sums"),))
    assert routing_of(base).balance == Balance(rate=0.001, sequence_weight=0.0)
    base = base.model_copy(update={"balance": wanted})
    assert routing_of(base).balance == wanted
    still = Balance(rate=0.0)
    assert routing_of(base, lora=True).balance == still
    assert routing_of(base.model_copy(update={"learns": "mtp"})).balance == still
    assert routing_of(Rl(kind="rl", name="zero", task="sums", steps=1)).balance == still


def test_the_sequence_wise_loss_is_equation_17() -> None:
    model = fresh_model(DEEPSEEK)
    batch = packed([6, 11])
    router = model.model.layers[1].mlp.gate
    seen: list[tuple[Tensor, Tensor]] = []
    router.register_forward_hook(lambda m, x, out: seen.append((x[0].detach(), out[1])))
    routing = Routing(model, Balance(sequence_weight=0.5))
    routing.begin()
    with routing.watched(batch.sequence_T, 2):
        model(batch.ids_T, PackedSequences(batch.lengths))
        loss = routing.seen()
    (x_TD, experts_TS), expected = seen[0], 0.0
    scores_TE = torch.sigmoid(x_TD @ router.weight.T).detach()
    for rows in (slice(0, 6), slice(6, 17)):
        length = rows.stop - rows.start
        for expert in range(4):
            f = 4 / (2 * length) * (experts_TS[rows] == expert).sum().item()
            share_T = scores_TE[rows, expert] / scores_TE[rows].sum(-1)
            expected += 0.5 * f * share_T.mean().item()
    assert loss is not None
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def episodes(model: CausalLM, *, experts: Tensor | None = None) -> list[Episode]:
    draw = random.Random(3)
    made = []
    for index in range(4):
        length = draw.randint(6, 14)
        made.append(
            Episode(
                ids=[draw.randrange(50) for _ in range(length)],
                learn=[False] * 3 + [True] * (length - 3),
                group=index // 2,
                reward=float(index % 2),
                logprobs=[-1.0] * length,
                experts=None if experts is None else experts[:, :length],
            )
        )
    return made


def test_logprobs_are_the_models_at_learnt_tokens_and_zero_elsewhere() -> None:
    model = fresh_model(DEEPSEEK)
    batch = packed([8, 5], prompt=3)
    logits_TV = model.logits(model(batch.ids_T, PackedSequences(batch.lengths)))
    expected_T = (logits_TV / 0.7).log_softmax(-1).gather(1, batch.targets_T[:, None])[:, 0]
    (found_T,) = Learner(model, SPEC, 1, temperature=0.7).logprobs([batch])
    torch.testing.assert_close(found_T, expected_T.detach() * batch.learn_T)
    assert not found_T.requires_grad


def test_on_policy_is_the_same_as_the_models_own_logprobs_as_old() -> None:
    algorithm = ALGORITHMS["grpo"]()
    model = fresh_model(LLAMA)
    made = algorithm.pack(algorithm.advantages(episodes(model)).episodes, 30)
    olds = Learner(model, SPEC, 1).logprobs(made)
    plain, _ = gradients_of(fresh_model(LLAMA), made, algorithm)
    with_old = [batch.with_old(old) for batch, old in zip(made, olds, strict=True)]
    given, _ = gradients_of(fresh_model(LLAMA), with_old, algorithm)
    for name, gradient in plain.items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_replayed_routing_uses_the_rollouts_experts() -> None:
    model = fresh_model(DEEPSEEK)
    choice = torch.tensor([2, 3], dtype=torch.int16).expand(1, 20, 2)
    algorithm = ALGORITHMS["dapo"]()
    made = algorithm.pack(algorithm.advantages(episodes(model, experts=choice)).episodes, 30)
    found, report = gradients_of(model, made, algorithm, checkpointing=True)
    assert report.router_load["model.layers.1.mlp"] == pytest.approx([0, 0, 0.5, 0.5])
    stack = found["model.layers.1.mlp.experts.gate_up_proj"]
    assert stack[:2].abs().max() == 0
    assert stack[2:].abs().amax(dim=(1, 2)).min() > 0
    assert model.model.layers[1].mlp.gate.replay is None
    free = algorithm.pack(algorithm.advantages(episodes(model)).episodes, 30)
    learner = Learner(model, SPEC, 1)
    assert not torch.equal(learner.logprobs(made)[0], learner.logprobs(free)[0])
    wrong = made[0].experts_MTS
    assert wrong is not None
    with pytest.raises(TrainError, match="2 layers"):
        learner.logprobs([RlBatch(**{**vars(made[0]), "experts_MTS": wrong.expand(2, -1, -1)})])


def test_replaying_a_models_own_choices_changes_nothing() -> None:
    model = fresh_model(DEEPSEEK)
    algorithm = ALGORITHMS["grpo"]()
    free = algorithm.pack(algorithm.advantages(episodes(model)).episodes, 10**6)
    chosen: list[Tensor] = []
    handle = model.model.layers[1].mlp.gate.register_forward_hook(
        lambda m, x, out: chosen.append(out[1])
    )
    learner = Learner(model, SPEC, 1)
    expected = learner.logprobs(free)
    handle.remove()
    replay = RlBatch(**{**vars(free[0]), "experts_MTS": torch.stack(chosen)})
    assert torch.equal(learner.logprobs([replay])[0], expected[0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("replays", [False, True])
def test_a_policy_does_not_diverge_from_a_reference_that_it_is(
    precision: Precision, replays: bool
) -> None:
    model = fresh_model(DEEPSEEK, mtp=True)
    experts = torch.randint(0, 2, (1, 20, 1)) + torch.tensor([0, 2]) if replays else None
    algorithm = ALGORITHMS["grpo"](kl=0.1)
    made = algorithm.advantages(episodes(model, experts=experts)).episodes
    reference = Reference(model, precision=precision, temperature=0.7)
    batches = reference.scored(algorithm.pack(made, 30))
    learner = Learner(model, SPEC, 2, precision=precision, temperature=0.7)
    assert learner.step(batches, algorithm).metrics["kl"] == pytest.approx(0, abs=1e-9)
    assert learner.step(batches, algorithm).metrics["kl"] > 1e-6


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo"])
def test_a_policy_learns_what_is_rewarded(name: str) -> None:
    model = fresh_model(LLAMA)
    algorithm = ALGORITHMS[name](importance_cap=100.0)
    made = algorithm.advantages(episodes(model)).episodes
    batches = algorithm.pack(made, 10**6)
    learner = Learner(model, Optimiser(learning_rate=3e-3, warmup=0), 10)
    before = learner.logprobs(batches)[0]
    batches = [batches[0].with_old(before)]
    batches = [RlBatch(**{**vars(batches[0]), "rollout_logprob_T": before})]
    for _ in range(3):
        learner.step(batches, algorithm)
    change_T = learner.logprobs(batches)[0] - before
    assert (change_T * batches[0].advantage_T).sum() > 0


def test_a_student_comes_nearer_to_its_teacher() -> None:
    student, teacher = fresh_model(LLAMA), fresh_model({**LLAMA, "hidden_size": 48}, seed=4)
    learner = Learner(student, Optimiser(learning_rate=3e-3, warmup=0), 30)
    reports = [learner.step([packed([20, 9])], TeacherDivergence(teacher)) for _ in range(30)]
    assert reports[0].loss == pytest.approx(reports[0].metrics["divergence"])
    assert reports[-1].loss < 0.7 * reports[0].loss
    assert "entropy" not in learning_values(reports[0])  # nothing has worked it out
    assert learning_values(learner.step([packed([20, 9])], sft))["entropy"] > 0
    wide = fresh_model({**LLAMA, "vocab_size": 60})
    with pytest.raises(TrainError, match="60 tokens"):
        learner.step([packed([20, 9])], TeacherDivergence(wide))


def broken(policy: Prediction, batch: Batch, whole: Totals) -> Terms:
    return Terms(policy.logprob.sum() * float("nan"))


def infinite_gradient(policy: Prediction, batch: Batch, whole: Totals) -> Terms:
    return Terms((policy.logprob.sum() * 0).sqrt())


@pytest.mark.parametrize("objective", [broken, infinite_gradient])
def test_a_loss_or_gradient_that_is_no_number_stops_before_weights_change(
    objective: Objective,
) -> None:
    model = fresh_model(DEEPSEEK)
    learner = Learner(model, SPEC, 10)
    learner.step([packed([9])], sft)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(TrainError, match="step 2"):
        learner.step([packed([9]), packed([4], 1)], objective)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert learner.step([packed([9])], sft).step == 2


def test_a_step_with_nothing_to_learn_moves_no_weight_but_the_schedule() -> None:
    model = fresh_model(LLAMA)
    learner = Learner(model, SPEC, 10)
    learner.step([packed([9])], sft)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = learner.step([], sft)
    assert (report.step, report.learnt, report.loss) == (2, 0, 0.0)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_clipping_is_at_the_global_norm() -> None:
    models = [fresh_model(LLAMA), fresh_model(LLAMA)]
    _, report = gradients_of(models[0], [packed([9, 4])], sft)
    total = 0.0
    learner = Learner(models[1], Optimiser(clip=0.01, warmup=0), 1)
    move = learner.updater.step

    def keep() -> None:
        nonlocal total
        total = sum(p.grad.square().sum().item() for p in models[1].parameters()) ** 0.5
        move()

    learner.updater.step = keep  # type: ignore[method-assign]
    clipped = learner.step([packed([9, 4])], sft)
    assert clipped.grad_norm == pytest.approx(report.grad_norm)
    assert total == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "mtp"), [("llama", False), ("deepseek", False), ("deepseek", True)]
)
def test_flops_equal_what_torch_counts(shape: str, mtp: bool) -> None:
    """torch counts attention over the whole square and recomputes the head; we count neither."""
    model = fresh_model(SHAPES[shape], mtp=mtp)
    batch = packed([32, 32])
    learner = Learner(model, SPEC, 1, mtp_weight=0.3 if mtp else 0.0)
    with FlopCounterMode(display=False) as counter:
        report = learner.step([batch], sft)
    targets = 60 if mtp else 0
    head = 2 * 50 * 32 * (report.learnt + targets)
    counted = counter.get_total_flops() - head
    assert report.flops == pytest.approx(counted, rel=0.2)
    frozen = step_flops(model.config, batch.lengths, report.learnt, frozen=True)
    assert 0.6 < frozen / step_flops(model.config, batch.lengths, report.learnt) < 0.72
