"""Timing the real engine (scheduler, sampler, paged cache), and the work each token stands for."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from mull.engine.decode_loop import MOST_STEPS
from mull.engine.request import Request, SamplingParams
from mull.errors import RequestError

if TYPE_CHECKING:
    from mull.engine.engine import Engine
    from mull.model.config import ModelConfig

PROMPT_TOKENS = 16  # of every sequence in a decode run


@dataclass(frozen=True)
class Work:
    """What a run moves and computes at the least: the weights' matrix products and the cache.

    Attention's own products are left out; at the short contexts timed here they are a per cent.
    """

    config: ModelConfig
    weight_bytes_each: float
    cache_bytes_per_token: int

    @property
    def _head(self) -> int:
        return self.config.vocab_size * self.config.hidden_size

    @property
    def _body_active(self) -> int:
        active = self.config.parameter_count()[1]
        return active - self._head * (1 if self.config.tie_word_embeddings else 2)

    def prefill_ops(self, tokens: int) -> float:
        """Only the last token goes through the head."""
        return 2.0 * (self._body_active * tokens + self._head)

    def decode_ops(self, batch: int) -> float:
        return 2.0 * (self._body_active + self._head) * batch

    def step_bytes(self, batch: int, context: int) -> float:
        """Weights read once for the whole batch, and every sequence's cache."""
        cache = batch * context * self.cache_bytes_per_token
        return self._weights_used(batch) * self.weight_bytes_each + cache

    def _weights_used(self, tokens: int) -> float:
        total, active = self.config.parameter_count()
        used = float(self._body_active + self._head)
        if self.config.num_experts_per_tok < self.config.n_routed_experts:
            # Experts hit by `tokens` tokens that choose independently and evenly.
            share = self.config.num_experts_per_tok / self.config.n_routed_experts
            idle = (1 - share) ** tokens
            routed = (total - active) / (1 - share)
            used += routed * (1 - idle) - routed * share
        return used


def prefill_seconds(engine: Engine, tokens: int, seed: int) -> float:
    """Seconds from submitting a prompt of `tokens` tokens to its first sampled token."""
    engine.submit(_request(engine, tokens, 1, seed))
    start = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start


def decode_seconds(
    engine: Engine, batch: int, steps: int, seed: int, prompt_tokens: int = PROMPT_TOKENS
) -> float:
    """Seconds for `steps` tokens of each of `batch` sequences, once all their prompts are computed.

    While long prompts are computed step by step, those that are done already decode: at the start
    of the clock the first ones are a few tokens ahead. The last call may compute a few steps more:
    what is told is the share of `steps`.
    """
    ahead = batch * prompt_tokens // engine.scheduler.max_batch_tokens + 1
    for i in range(batch):
        most = steps + ahead + 2 * MOST_STEPS
        engine.submit(_request(engine, prompt_tokens, most, seed + i))
    while not _all_decode(engine, batch):
        engine.step()
    before = engine.counters.decode_tokens
    start = time.perf_counter()
    while (decoded := engine.counters.decode_tokens - before) < batch * steps:
        engine.step()
    seconds = time.perf_counter() - start
    assert _all_decode(engine, batch), "an answer ended before the clock was stopped"
    engine.cancel_all()
    return seconds * batch * steps / decoded


def _all_decode(engine: Engine, batch: int) -> bool:
    running = engine.scheduler.running
    return len(running) == batch and all(seq.is_decoding for seq in running)


def _request(engine: Engine, prompt_tokens: int, max_tokens: int, seed: int) -> Request:
    """Random tokens, so that no prefix is shared; greedy, never ending early, nothing guessed."""
    special = set(engine.tokenizer.special_ids.values())
    words = [i for i in range(min(engine.tokenizer.vocab_size, 50_000)) if i not in special]
    prompt = random.Random(seed).choices(words, k=prompt_tokens)
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return Request(prompt, sampling, detect_loops=False, speculate=False)


def prefill_rate(engine: Engine, tokens: int, *, rounds: int, seed: int) -> float:
    """Median tokens/s; the first, untimed run warms up."""
    prefill_seconds(engine, tokens, seed)
    seconds = [prefill_seconds(engine, tokens, seed + 1 + i) for i in range(rounds)]
    return tokens / median(seconds)


def decode_rate(
    engine: Engine, batch: int, *, rounds: int, seed: int, seconds_each: float = 0.7
) -> tuple[float, int]:
    """(median tokens/s of the whole batch, steps of each round)."""
    warm = decode_seconds(engine, batch, 2, seed) / 2
    steps = min(64, max(4, round(seconds_each / warm)))
    seconds = [decode_seconds(engine, batch, steps, seed + batch * (i + 1)) for i in range(rounds)]
    return batch * steps / median(seconds), steps


def check_room(context: int, tokens: int) -> None:
    if context < tokens:
        raise RequestError(
            f"the bench needs a context of {tokens} tokens and the model has {context}: "
            "choose another model"
        )
