"""How likely a model makes the tokens that a step learns, computed exactly as the step computes it:
in its precision, with the expert choices that it replays. For policies before an update and for
references; two models of equal weights then differ in nothing.

T tokens (packed) · L learnt tokens of them · D model
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from mull.model import CausalLM, PackedSequences
from mull.train.batch import Batch
from mull.train.logprobs import token_logprobs
from mull.train.rl_batch import RlBatch
from mull.train.routing import Routing

Precision = Literal["fp32", "bf16"]


@torch.no_grad()
def score(
    model: CausalLM,
    routing: Routing,
    batches: Sequence[Batch],
    *,
    precision: Precision,
    temperature: float,
) -> list[Tensor]:
    """float32 [T] of each batch: log-probabilities of its targets, 0 where nothing is learnt.
    Expert choices are replayed where a batch has them. routing: of `model`."""
    device = model.lm_head.weight.device
    results = []
    for batch in batches:
        rows_L = batch.learn_T.nonzero()[:, 0]
        logprob_T = torch.zeros(batch.tokens, device=device)
        with products_in(precision, device), routing.replayed(experts_of(batch)):
            hidden_TD = model(
                batch.ids_T, PackedSequences(batch.lengths, positions_T=batch.positions_T)
            )
            logprob_T[rows_L] = token_logprobs(
                hidden_TD[rows_L],
                model.lm_head.weight,
                batch.targets_T[rows_L],
                temperature=temperature,
            )[0]
        results.append(logprob_T)
    return results


@contextmanager
def products_in(precision: Precision, device: torch.device) -> Iterator[None]:
    enabled = precision == "bf16"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
        yield


def experts_of(batch: Batch) -> Tensor | None:
    """The choices to replay."""
    return batch.experts_MTS if isinstance(batch, RlBatch) else None
