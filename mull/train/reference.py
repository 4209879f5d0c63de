"""The reference policy that a divergence is measured from: a copy that stands still for a while."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mull.model import CausalLM
from mull.train.models import plain
from mull.train.rl_batch import RlBatch
from mull.train.routing import Routing
from mull.train.scoring import Precision, score


class Reference:
    """Begins as the policy it is made of. precision, temperature: of the policy's own
    log-probabilities, which its are compared with."""

    def __init__(
        self, policy: CausalLM, *, precision: Precision = "fp32", temperature: float = 1.0
    ) -> None:
        self.precision, self.temperature = precision, temperature
        self.refresh(policy)

    def refresh(self, policy: CausalLM) -> None:
        self.model = _frozen(policy)
        self._routing = Routing(self.model)

    def state(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(tensors)

    def scored(self, batches: Sequence[RlBatch]) -> list[RlBatch]:
        """The batches with the reference's log-probabilities of what is learnt in them."""
        found = score(
            self.model,
            self._routing,
            batches,
            precision=self.precision,
            temperature=self.temperature,
        )
        return [batch.with_reference(each) for batch, each in zip(batches, found, strict=True)]


def _frozen(policy: CausalLM) -> CausalLM:
    """With memory of its own."""
    copy = plain(policy, mtp=False)
    for name, tensor in copy.state_dict(keep_vars=True).items():
        if name != "lm_head.weight" or not policy.config.tie_word_embeddings:
            tensor.data = tensor.data.clone()
    return copy
