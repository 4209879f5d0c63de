"""The reference policy that a divergence is measured from: a copy that stands still for a while."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mull.model import CausalLM, PackedSequences
from mull.train.logprobs import token_logprobs
from mull.train.models import plain
from mull.train.rl_batch import RlBatch


class Reference:
    """Begins as the policy it is made of."""

    def __init__(self, policy: CausalLM) -> None:
        self.model = _frozen(policy)

    def refresh(self, policy: CausalLM) -> None:
        self.model = _frozen(policy)

    def state(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(tensors)

    @torch.no_grad()
    def scored(self, batches: Sequence[RlBatch], temperature: float) -> list[RlBatch]:
        """The batches with the reference's log-probabilities of what is learnt in them."""
        result = []
        for batch in batches:
            rows_L = batch.learn_T.nonzero()[:, 0]
            hidden_TD = self.model(
                batch.ids_T, PackedSequences(batch.lengths, positions_T=batch.positions_T)
            )
            logprob_T = torch.zeros(batch.tokens)
            logprob_T[rows_L] = token_logprobs(
                hidden_TD[rows_L],
                self.model.lm_head.weight,
                batch.targets_T[rows_L],
                temperature=temperature,
            )[0]
            result.append(batch.with_reference(logprob_T))
        return result


def _frozen(policy: CausalLM) -> CausalLM:
    """With memory of its own."""
    copy = plain(policy, mtp=False)
    for name, tensor in copy.state_dict(keep_vars=True).items():
        if name != "lm_head.weight" or not policy.config.tie_word_embeddings:
            tensor.data = tensor.data.clone()
    return copy
