"""Mixture of experts (V3 report, section 2.1.2; V2 report, section 2.2): router, experts, shared.

An expert with work does one product over its tokens, an expert without work costs nothing (see
grouped.py). Everything is differentiable: the same code trains.

T tokens (packed, no padding) · S chosen experts of a token · D model · E experts · F expert hidden
width · N groups of experts
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mull.model.config import ModelConfig
from mull.model.grouped import grouped_experts
from mull.model.layers import GatedMLP

_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits_TE: logits_TE.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
}

# What a group of experts is worth when only the best groups may be chosen from.
_GROUP_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "group_limited_greedy": lambda scores_TNe: scores_TNe.amax(dim=-1),
    "noaux_tc": lambda scores_TNe: scores_TNe.topk(2, dim=-1).values.sum(dim=-1),
}


class Router(nn.Module):
    """Chooses experts and weighs them; float32 throughout, since near-ties decide the route."""

    e_score_correction_bias: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.chosen = config.num_experts_per_tok
        self.groups, self.kept_groups = config.n_group, config.topk_group
        self.score = _SCORES[config.scoring_func]
        self.group_score = _GROUP_SCORES.get(config.topk_method)
        self.normalise = config.norm_topk_prob and config.num_experts_per_tok > 1
        self.scaling = config.routed_scaling_factor
        shape = (config.n_routed_experts, config.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        nn.init.normal_(self.weight, std=config.initializer_range)
        self.has_selection_bias = config.topk_method == "noaux_tc"
        if self.has_selection_bias:
            # Not a Parameter: no gradient reaches it, the trainer's balancing rule moves it.
            bias_E = torch.zeros(config.n_routed_experts, device=device, dtype=torch.float32)
            self.register_buffer("e_score_correction_bias", bias_E)
        # int64 [T, chosen]: the choices of an earlier pass, to be made again; None: choose.
        self.replay: Tensor | None = None

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """(weights float32 [T, chosen], experts int64 [T, chosen])."""
        scores_TE = self.scores(x_TD)
        experts_TS = self._choose(scores_TE.detach()) if self.replay is None else self.replay
        # The bias only selects: the weights are the unbiased scores.
        weights_TS = scores_TE.gather(1, experts_TS)
        if self.normalise:
            weights_TS = weights_TS / (weights_TS.sum(dim=-1, keepdim=True) + 1e-20)
        return weights_TS * self.scaling, experts_TS

    def scores(self, x_TD: Tensor) -> Tensor:
        """Affinities, float32 [T, E], under autocast too."""
        with torch.autocast(x_TD.device.type, enabled=False):
            return self.score(F.linear(x_TD.float(), self.weight.float()))

    def _choose(self, ranks_TE: Tensor) -> Tensor:
        if self.has_selection_bias:
            ranks_TE = ranks_TE + self.e_score_correction_bias.float()
        return self._best_groups_only(ranks_TE).topk(self.chosen, dim=-1).indices

    def _best_groups_only(self, ranks_TE: Tensor) -> Tensor:
        if self.group_score is None:
            return ranks_TE
        ranks_TNe = ranks_TE.unflatten(1, (self.groups, -1))
        kept_TM = self.group_score(ranks_TNe).topk(self.kept_groups, dim=-1).indices
        dropped_TN = torch.ones(ranks_TNe.shape[:2], dtype=torch.bool, device=ranks_TE.device)
        dropped_TN = dropped_TN.scatter(1, kept_TM, False)
        return ranks_TNe.masked_fill(dropped_TN[..., None], float("-inf")).flatten(1)


class Experts(nn.Module):
    """All gated MLPs stacked: gate_up_proj [E, 2F, D] (gate rows first), down_proj [E, D, F]."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        experts, width, hidden = (
            config.n_routed_experts,
            config.hidden_size,
            config.moe_intermediate_size,
        )
        self.gate_up_proj = nn.Parameter(
            torch.empty(experts, 2 * hidden, width, device=device, dtype=dtype)
        )
        self.down_proj = nn.Parameter(
            torch.empty(experts, width, hidden, device=device, dtype=dtype)
        )
        nn.init.normal_(self.gate_up_proj, std=config.initializer_range)
        nn.init.normal_(self.down_proj, std=config.initializer_range)

    def forward(self, x_TD: Tensor, weights_TS: Tensor, experts_TS: Tensor) -> Tensor:
        """Weighted sum of each token's chosen experts, [T, D]."""
        if not x_TD.shape[0]:
            return torch.zeros_like(x_TD)
        return grouped_experts(x_TD, weights_TS, experts_TS, self.gate_up_proj, self.down_proj)


class MixtureOfExperts(nn.Module):
    """Routed experts plus, where the model has one, a shared expert that sees every token."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate = Router(config, device=device, dtype=dtype)
        self.experts = Experts(config, device=device, dtype=dtype)
        self.has_shared = config.n_shared_experts > 0
        if self.has_shared:
            # Several shared experts are one MLP of their summed width.
            self.shared_experts = GatedMLP(
                config.hidden_size,
                config.n_shared_experts * config.moe_intermediate_size,
                bias=config.mlp_bias,
                device=device,
                dtype=dtype,
            )

    def forward(self, x_TD: Tensor) -> Tensor:
        weights_TS, experts_TS = self.gate(x_TD)
        out_TD = self.experts(x_TD, weights_TS, experts_TS)
        return out_TD + self.shared_experts(x_TD) if self.has_shared else out_TD
