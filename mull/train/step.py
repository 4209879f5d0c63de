"""The training step, the same for every stage and algorithm.

Forward over packed sequences, log-probabilities of the learnt tokens in chunks, the objective's
loss, backward, clip, optimiser, balancing of the experts. What is learnt, and why, the objective
knows (see objective.py).

T tokens (packed) · L learnt tokens · D model
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mull.errors import TrainError
from mull.model import CausalLM, PackedSequences
from mull.train.batch import Batch
from mull.train.flops import step_flops
from mull.train.logprobs import token_statistics
from mull.train.memory import keep_freed_memory
from mull.train.objective import Objective, Prediction, Totals
from mull.train.optimiser import Updater
from mull.train.recipe_parts import Balance, Optimiser
from mull.train.routing import Routing
from mull.train.scoring import Precision, experts_of, products_in, score


@dataclass(frozen=True)
class StepReport:
    """step: from 1. grad_norm: before clipping. entropy (None: the objective asks for no
    log-probabilities), metrics: means over learnt tokens.
    router_load: each expert's share by layer. mtp_hits: how often the MTP module's likeliest token
    is the one that came. flops: of the step, see flops.py."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    learnt: int
    entropy: float | None
    metrics: dict[str, float]
    flops: float
    seconds: float
    router_violation: float = 0.0
    router_load: dict[str, list[float]] = field(default_factory=dict)
    mtp_loss: float | None = None
    mtp_hits: float | None = None

    def utilisation(self, peak_gflop_per_s: float) -> float:
        """Share of a machine's peak in this precision."""
        return self.flops / self.seconds / (peak_gflop_per_s * 1e9)


class Learner:
    """Trains `model` (float32 weights) in place.

    precision bf16: products in bfloat16 by autocast, weights and optimiser stay float32.
    checkpointing: layers are computed again in the backward pass, which saves memory.
    mtp_weight: lambda of the MTP loss (V3 report, eq. 24), 0: not trained. mtp_passes: how often
    the module is applied, after the first time to its own output of the place before. only_mtp:
    nothing else learns; TrainError for a model without it. temperature: of the
    policy whose log-probabilities are meant, as in its rollouts.
    """

    def __init__(
        self,
        model: CausalLM,
        spec: Optimiser,
        total_steps: int,
        *,
        precision: Precision = "fp32",
        checkpointing: bool = False,
        mtp_weight: float = 0.0,
        mtp_passes: int = 1,
        only_mtp: bool = False,
        balance: Balance | None = None,
        temperature: float = 1.0,
    ) -> None:
        keep_freed_memory()
        self.model, self.spec = model, spec
        self.precision, self.temperature = precision, temperature
        self.mtp_weight = mtp_weight if len(model.mtp) else 0.0
        model.model.checkpointing = checkpointing
        self.mtp_passes, self._only_mtp = mtp_passes, only_mtp
        for depth in model.mtp if not self.mtp_weight else ():
            depth.requires_grad_(False)
        if only_mtp:
            if not self.mtp_weight:
                raise TrainError(
                    'learns is "mtp", but the model has no multi-token prediction '
                    "(or mtp_weight is 0)"
                )
            model.model.requires_grad_(False)
            model.lm_head.requires_grad_(False)
        self.updater = Updater(model.named_parameters(), spec, total_steps)
        self.routing = Routing(model, balance)
        self.device = model.lm_head.weight.device
        self._frozen = (
            not model.model.layers[-1].get_parameter("self_attn.o_proj.weight").requires_grad
        )

    @property
    def steps_done(self) -> int:
        return self.updater.step_index

    def step(self, batches: Sequence[Batch], objective: Objective) -> StepReport:
        """One update on all of `batches`. Nothing to learn in them: the weights stay, the schedule
        goes on. Raises TrainError before any weight changes where loss or gradient is not finite.
        """
        start = time.perf_counter()
        whole = Totals(
            sequences=sum(len(batch.lengths) for batch in batches),
            tokens=sum(batch.tokens for batch in batches),
            learnt=int(sum(batch.learn_T.sum() for batch in batches)),
        )
        sums = _Sums(whole)
        rate = self.updater.rate
        learns = self._mtp_targets(batches) if self._only_mtp else whole.learnt
        norm = self._learn(batches, objective, sums) if learns else self._pass()
        return StepReport(
            step=self.steps_done,
            loss=sums.loss,
            grad_norm=norm,
            learning_rate=rate,
            tokens=whole.tokens,
            learnt=whole.learnt,
            entropy=sums.mean("entropy") if "entropy" in sums.metrics else None,
            metrics={name: sums.mean(name) for name in sums.metrics if name != "entropy"},
            flops=self._flops(batches, whole.learnt),
            seconds=time.perf_counter() - start,
            router_violation=self.routing.violation(),
            router_load=self.routing.shares(),
            mtp_loss=sums.mtp_loss,
            mtp_hits=sums.mtp_hits,
        )

    def logprobs(self, batches: Sequence[Batch]) -> list[Tensor]:
        """float32 [T] of each batch, of its targets by the model as it stands (see `score`)."""
        return score(
            self.model,
            self.routing,
            batches,
            precision=self.precision,
            temperature=self.temperature,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of optimiser and schedule: (tensors, json-able rest). Weights and the routers' biases are
        in the model's own state_dict. The tensors are live: write them before the next step."""
        return self.updater.state()

    def load_state(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        """What `state` gave; going on is then bit-identical to never having stopped."""
        self.updater.load_state(tensors, rest)

    def _learn(self, batches: Sequence[Batch], objective: Objective, sums: _Sums) -> float:
        """Gradients of all batches, then the update; the gradient's norm before clipping."""
        self.updater.zero_grad()
        self.routing.begin()
        mtp_targets = self._mtp_targets(batches)
        # One region for all batches: autocast casts a weight once and keeps it.
        with products_in(self.precision, self.device):
            for batch in batches:
                watched = self.routing.watched(batch.sequence_T, len(batch.lengths))
                with watched, self.routing.replayed(experts_of(batch)):
                    loss = self._loss(batch, objective, sums, mtp_targets)
                    with torch.autocast(self.device.type, enabled=False):
                        loss.backward()
        gradients = [p.grad for p in self.updater.parameters.values() if p.grad is not None]
        norm_tensor = get_total_norm(gradients)
        norm = float(norm_tensor)
        self._check(sums.loss, norm)
        clip_grads_with_norm_(self.updater.parameters.values(), self.spec.clip, norm_tensor)
        self.updater.step()
        self.routing.rebalance()
        self.updater.zero_grad()
        return norm

    def _pass(self) -> float:
        self.routing.begin()
        self.updater.skip()
        return 0.0

    def _loss(self, batch: Batch, objective: Objective, sums: _Sums, mtp_targets: int) -> Tensor:
        seqs = PackedSequences(batch.lengths, positions_T=batch.positions_T)
        rows_L = batch.learn_T.nonzero()[:, 0]
        hidden_TD = self.model(batch.ids_T, seqs)
        mtp = self._mtp(batch, hidden_TD, seqs, sums, mtp_targets)
        balance = self.routing.seen()
        policy = Prediction(
            hidden_TD[rows_L],
            self.model.lm_head.weight,
            batch.targets_T[rows_L],
            rows_L,
            self.temperature,
        )
        terms = objective(policy, batch, sums.whole)
        sums.add(terms.loss, terms.metrics)
        if policy.entropy is not None:
            sums.add_metric("entropy", policy.entropy.sum())
        loss = terms.loss if mtp is None else terms.loss + self.mtp_weight * mtp
        return loss if balance is None else loss + balance / sums.whole.sequences

    def _mtp(
        self, batch: Batch, hidden_TD: Tensor, seqs: PackedSequences, sums: _Sums, targets: int
    ) -> Tensor | None:
        """This batch's part of the mean cross-entropy of the tokens two ahead (V3 eq. 24), of all
        passes; the hits are the first one's."""
        if not self.mtp_weight or not targets:
            return None
        two_T, learn_T = _two_ahead(batch)
        rows_L = learn_T.nonzero()[:, 0]
        starts_T1 = _starts(batch)[:, None]
        passes: list[Tensor] = []
        before_TD = hidden_TD
        for _ in range(self.mtp_passes):
            mtp_TD = self.model.mtp_hidden(before_TD, batch.targets_T, seqs)
            logprob_L, _, is_top_L = token_statistics(
                mtp_TD[rows_L], self.model.lm_head.weight, two_T[rows_L]
            )
            if not passes:
                hits = is_top_L.sum() / targets
            passes.append(-logprob_L.sum() / targets)
            # What stands for the hidden state of a place is what the module made of the one before.
            if len(passes) < self.mtp_passes:
                before_TD = torch.where(starts_T1, hidden_TD, mtp_TD.roll(1, 0))
        loss = torch.stack(passes).mean()
        sums.add_mtp(loss, hits)
        return loss

    def _mtp_targets(self, batches: Sequence[Batch]) -> int:
        """Tokens that the MTP module learns."""
        if not self.mtp_weight:
            return 0
        return sum(int(_two_ahead(batch)[1].sum()) for batch in batches)

    def _check(self, loss: float, norm: float) -> None:
        for what, value in (("loss", loss), ("gradient's norm", norm)):
            if not math.isfinite(value):
                self.updater.zero_grad()
                raise TrainError(
                    f"step {self.steps_done + 1}: the {what} is {value}; the weights are as before "
                    "this step. Lower learning_rate or clip, or look at the data of this step"
                )

    def _flops(self, batches: Sequence[Batch], learnt: int) -> float:
        lengths = [length for batch in batches for length in batch.lengths]
        targets = self._mtp_targets(batches)
        return step_flops(
            self.model.config,
            lengths,
            learnt,
            mtp_targets=targets,
            mtp_passes=self.mtp_passes,
            frozen=self._frozen and not self._only_mtp,
            only_mtp=self._only_mtp,
        )


class _Sums:
    """What adds up over a step's batches."""

    def __init__(self, whole: Totals) -> None:
        self.whole = whole
        self.metrics: dict[str, Tensor] = {}
        self._loss: Tensor | float = 0.0
        self._mtp: tuple[Tensor, Tensor] | None = None

    def add(self, loss: Tensor, metrics: Mapping[str, Tensor]) -> None:
        self._loss = self._loss + loss.detach()
        for name, value in metrics.items():
            self.add_metric(name, value)

    def add_metric(self, name: str, value: Tensor) -> None:
        before = self.metrics.get(name)
        self.metrics[name] = value.detach() if before is None else before + value.detach()

    def add_mtp(self, loss: Tensor, hits: Tensor) -> None:
        before = self._mtp or (torch.zeros(()), torch.zeros(()))
        self._mtp = before[0] + loss.detach(), before[1] + hits

    @property
    def loss(self) -> float:
        return float(self._loss)

    def mean(self, name: str) -> float:
        return float(self.metrics[name]) / self.whole.learnt if name in self.metrics else 0.0

    @property
    def mtp_loss(self) -> float | None:
        return None if self._mtp is None else float(self._mtp[0])

    @property
    def mtp_hits(self) -> float | None:
        return None if self._mtp is None else float(self._mtp[1])


def _two_ahead(batch: Batch) -> tuple[Tensor, Tensor]:
    """(the token after the next one, whether predicting it is learnt), both [T].

    Only within a sequence: the last two positions of each have no such token.
    """
    two_T = batch.targets_T.roll(-1)
    same_T = batch.sequence_T == batch.sequence_T.roll(-1)
    same_T[-1:] = False
    return two_T, batch.learn_T.roll(-1) & same_T


def _starts(batch: Batch) -> Tensor:
    """Whether a place is the first of its sequence, [T]."""
    starts_T = batch.sequence_T != batch.sequence_T.roll(1)
    starts_T[:1] = True
    return starts_T
