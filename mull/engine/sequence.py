"""One sample on its way through the engine: its tokens, how many are computed, and its blocks.

Everything the block manager, the scheduler and the sampler need to know of it, and nothing of text.
"""

from __future__ import annotations

from array import array

from mull.engine.grammar import Constraint
from mull.engine.request import Request, SamplingParams, TokenLogprob


class Sequence:
    """Tokens [0, computed) have their keys in the cache; the rest wait to be computed.

    Prefill, decode, forced tokens and recomputation after preemption are all the same act: compute
    the tokens that are not, and when none is left, sample the next one.
    """

    def __init__(self, request_id: int, index: int, arrival: int, request: Request, seed: int):
        self.request_id = request_id
        self.index = index
        self.arrival = arrival
        self.token_ids: list[int] = list(request.prompt_ids)
        self.namespace: str = request.namespace
        self.prompt_tops = request.prompt_logprobs
        self.prompt_logprobs: list[TokenLogprob] = []
        if self.prompt_tops is not None:
            self.namespace += f"\0{request_id}"  # nothing in the cache is found: all is computed
            self.prompt_logprobs.append(TokenLogprob(self.token_ids[0], None))
        self.sampling: SamplingParams = request.sampling
        self.seed = seed
        self.prompt_length = len(self.token_ids)
        self.computed = 0
        self.prefill_until = 0
        self.block_table: array[int] = array("i")
        self.block_hashes: list[bytes] = []
        self.committed_blocks = 0
        self.is_running = False
        self.cached_tokens: int | None = None
        self.preemptions = 0
        self.siblings: list[Sequence] = []
        self.constraint: Constraint | None = None
        if request.grammar is not None:
            self.constraint = Constraint(
                request.grammar,
                is_thinking=request.starts_in_thinking,
                may_think=request.may_think,
                breaks_loops=request.detect_loops,
            )
        self.is_plain = request.sampling.is_plain and self.constraint is None
        self._speculate = request.speculate
        # Occurrences in the answer of every token seen; 0 for those of the prompt alone, which
        # only a repetition penalty asks for.
        self.seen: dict[int, int] = {}
        if self.sampling.repetition_penalty != 1.0:
            self.seen = dict.fromkeys(self.token_ids, 0)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def speculate(self) -> bool:
        """Whether its next tokens may be guessed: a grammar decides each after the one before."""
        return self._speculate and (self.constraint is None or self.constraint.is_free)

    @property
    def uncomputed(self) -> int:
        return len(self.token_ids) - self.computed

    @property
    def is_decoding(self) -> bool:
        return self.computed >= self.prefill_until

    @property
    def generated(self) -> int:
        return len(self.token_ids) - self.prompt_length

    def append(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        if self.sampling.has_penalties:
            self.seen[token_id] = self.seen.get(token_id, 0) + 1
