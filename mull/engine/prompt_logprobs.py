"""How likely the tokens of a prompt are, for requests that ask for it.

T rows of a step (packed) · R rows at a time · D model · V vocabulary
"""

from __future__ import annotations

from torch import Tensor

from mull.engine.sampler import token_logprobs
from mull.engine.scheduler import Chunk
from mull.model.transformer import CausalLM

# Rows of logits at a time: all of a prompt's would not fit.
_ROWS = 64


def read_prompts(
    chunks: list[Chunk], hidden_TD: Tensor, model: CausalLM, *, vocabulary: int
) -> None:
    """Add to `prompt_logprobs` of the sequences that want them what this step's rows tell.

    hidden_TD: what the model gave for the chunks' rows.
    """
    row = 0
    for chunk in chunks:
        seq, start = chunk.seq, row - chunk.start
        row += chunk.rows
        if seq.prompt_tops is None:
            continue
        # Position i tells of token i + 1; after a preemption some are known already.
        known, end = len(seq.prompt_logprobs), chunk.start + chunk.count
        wanted = range(max(known - 1, chunk.start), min(end, seq.prompt_length - 1))
        for first in wanted[::_ROWS]:
            positions = range(first, min(first + _ROWS, wanted.stop))
            chosen = [seq.token_ids[position + 1] for position in positions]
            width = max(vocabulary, *(token + 1 for token in chosen))
            hidden_RD = hidden_TD[start + first : start + positions.stop]
            logits_RV = model.logits(hidden_RD)[:, :width]
            tops = [seq.prompt_tops] * len(chosen)
            seq.prompt_logprobs += token_logprobs(logits_RV, chosen, tops)
