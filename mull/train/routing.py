"""A training step's view of the routers: load, balancing without auxiliary loss, replay.

T tokens · E experts · S chosen experts · N sequences · M layers with experts
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mull.errors import TrainError
from mull.model.moe import Router
from mull.train.recipe_parts import Balance


class Routing:
    """Watches every router of a model, MTP modules' too; does nothing for a model without any."""

    def __init__(self, model: nn.Module, balance: Balance | None = None) -> None:
        self.balance = balance or Balance()
        self.routers = {
            name.removesuffix(".gate"): module
            for name, module in model.named_modules()
            if isinstance(module, Router)
        }
        self.main = [router for name, router in self.routers.items() if name.startswith("model.")]
        self.loads: dict[str, Tensor] = {}
        self._watching = False
        self._sequence_T: Tensor | None = None
        self._sequences = 0
        self._losses: list[Tensor] = []
        for name, router in self.routers.items():
            router.register_forward_hook(self._hook(name))

    def begin(self) -> None:
        self.loads = {
            name: torch.zeros(len(router.weight), dtype=torch.int64, device=router.weight.device)
            for name, router in self.routers.items()
        }

    @contextmanager
    def watched(self, sequence_T: Tensor, sequences: int) -> Iterator[None]:
        """For the forward and backward pass of a batch: counts what the routers choose, until
        `seen`. A checkpointed layer runs its router once more going backward, and must then do the
        same arithmetic, but count nothing."""
        self._watching, self._sequence_T, self._sequences = True, sequence_T, sequences
        self._losses = []
        try:
            yield
        finally:
            self._watching, self._sequence_T, self._losses = False, None, []

    @contextmanager
    def replayed(self, experts_MTS: Tensor | None) -> Iterator[None]:
        """The main layers' routers choose as given (forward and backward), None: for themselves."""
        if experts_MTS is None:
            yield
            return
        if len(experts_MTS) != len(self.main):
            raise TrainError(
                f"expert choices of {len(experts_MTS)} layers cannot be replayed in a model "
                f"with {len(self.main)} layers of experts"
            )
        for router, experts_TS in zip(self.main, experts_MTS, strict=True):
            router.replay = experts_TS
        try:
            yield
        finally:
            for router in self.main:
                router.replay = None

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """The main layers' choices of one forward pass, int64 [T, S] each, in order."""
        chosen: list[Tensor] = []
        hooks = [
            router.register_forward_hook(lambda _router, _inputs, output: chosen.append(output[1]))
            for router in self.main
        ]
        try:
            yield chosen
        finally:
            for hook in hooks:
                hook.remove()

    def seen(self) -> Tensor | None:
        """Ends the counting of this batch. Its sequence-wise loss, weighted and summed over layers
        and sequences; None: not wanted."""
        self._watching = False
        return torch.stack(self._losses).sum() if self._losses else None

    @torch.no_grad()
    def rebalance(self) -> None:
        """After a step, over all of it: more for underloaded experts, less for overloaded ones."""
        for name, router in self.routers.items():
            load_E = self.loads[name].float()
            if router.has_selection_bias and self.balance.rate:
                lack_E = (load_E.mean() - load_E).sign()
                router.e_score_correction_bias += self.balance.rate * lack_E

    def violation(self) -> float:
        """How far the fullest expert lies above the mean load, averaged over layers; 0: balanced
        (MaxVio of arXiv 2408.15664)."""
        values = [
            (load_E.max() / load_E.float().mean().clamp(min=1e-9) - 1).item()
            for load_E in self.loads.values()
            if load_E.any()
        ]
        return sum(values) / len(values) if values else 0.0

    def shares(self) -> dict[str, list[float]]:
        """Each expert's share of its layer's choices."""
        return {
            name: (load_E / load_E.sum().clamp(min=1)).tolist()
            for name, load_E in self.loads.items()
        }

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def hook(router: Router, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
            if self._sequence_T is None:
                return
            experts_TS = output[1]
            loss = None
            if self.balance.sequence_weight and torch.is_grad_enabled():
                loss = self._sequence_loss(router, inputs[0], experts_TS)
            if not self._watching:
                return
            self.loads[name] += torch.bincount(experts_TS.flatten(), minlength=len(router.weight))
            if loss is not None:
                self._losses.append(loss)

        return hook

    def _sequence_loss(self, router: Router, x_TD: Tensor, experts_TS: Tensor) -> Tensor:
        """alpha x sum over experts of f_i P_i, for each sequence (V3 report, eq. 17 to 20)."""
        assert self._sequence_T is not None
        scores_TE = router.scores(x_TD)
        affinity_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
        chosen_TE = torch.zeros_like(scores_TE).scatter_(1, experts_TS, 1.0)
        experts = scores_TE.shape[1]
        empty_NE = scores_TE.new_zeros(self._sequences, experts)
        length_N1 = torch.bincount(self._sequence_T, minlength=self._sequences)[:, None]
        often_NE = empty_NE.index_add(0, self._sequence_T, chosen_TE) / length_N1
        f_NE = often_NE * (experts / experts_TS.shape[1])
        p_NE = empty_NE.index_add(0, self._sequence_T, affinity_TE) / length_N1
        return self.balance.sequence_weight * (f_NE * p_NE).sum()
