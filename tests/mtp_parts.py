"""What the tests of multi-token prediction share: models that have it, an engine that always
guesses, and what the guess ought to be, worked out over the whole sequence."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from engine_parts import DEEPSEEK, EOS, VOCABULARY, make_engine, tiny_model
from speculation_parts import FreeRows

from mull.engine.engine import Engine
from mull.engine.fused_latent import FusedNextToken
from mull.engine.guess_rates import GuessRates
from mull.engine.mtp_gate import Choice, MtpGate
from mull.engine.prepare import prepare
from mull.engine.request import Event
from mull.engine.sampler import choose
from mull.engine.sequence import Sequence
from mull.engine.step_costs import StepCosts
from mull.model.config import ModelConfig
from mull.model.sequences import PackedSequences
from mull.model.transformer import CausalLM
from mull.text.tokenizer import Tokenizer

MOE = {**DEEPSEEK, "num_nextn_predict_layers": 1}
DENSE = {**MOE, "first_k_dense_replace": 99}


def mtp_model(shape: dict[str, Any], precision: str, seed: int = 0) -> CausalLM:
    """Random weights; precision: plain, or one it is prepared in."""
    model = tiny_model(shape, seed, mtp=True)
    if precision == "plain":
        return model
    return prepare(model, precision=precision, device=torch.device("cpu"))


class Hopeful(GuessRates):
    """Believes in guesses whatever becomes of them, so that up to four are tried a step."""

    def rate(self, kind: int) -> float:
        return 0.6

    def rates(self) -> list[float]:
        return [0.6] * len(super().rates())

    def mean(self, depth: int) -> float:
        return 0.6


class AlwaysGuess(MtpGate):
    def choose(
        self, ends: int, costs: StepCosts, rates: GuessRates, *, is_decode: bool, steps: int = 1
    ) -> Choice:
        return "guess"


def eager_engine(model: CausalLM, tokenizer: Tokenizer, **options: Any) -> Engine:
    """Guesses at every step, for everybody, and tries what it guessed."""
    engine = make_engine(model, tokenizer, speculation="mtp", **options)
    assert engine.drafter is not None
    engine.drafter.rates = Hopeful()
    engine.speculation.costs = FreeRows()
    engine.speculation.gate = AlwaysGuess()
    assert engine.speculation.loop is not None
    engine.speculation.loop.most_steps = 1  # so that every guess can be looked at
    return engine


@torch.inference_mode()
def guesses_over_the_whole(
    model: CausalLM, seq: Sequence, ids: list[int], count: int, vocabulary: int
) -> list[int]:
    """The guesses after `ids`, without a cache; from the second on the module's own output stands
    for the hidden state that is not known. Native code looks at no filters."""
    if isinstance(model.mtp[0], FusedNextToken):
        seq = copy(seq)
        seq.sampling = replace(seq.sampling, top_k=0, top_p=1.0, min_p=0.0)
    ids_T = torch.tensor(ids)
    seqs = PackedSequences([len(ids) - 1])
    hidden_TD = model(ids_T[:-1], seqs)
    guesses: list[int] = []
    for _ in range(count):
        next_ids_T = torch.tensor(ids[1:] + guesses)
        seqs = PackedSequences([len(hidden_TD)])
        out_TD = model.mtp_hidden(hidden_TD, next_ids_T, seqs)
        logits_1V = model.logits(out_TD[-1:])[:, :vocabulary]
        guesses += choose(logits_1V, [seq], [guesses])
        hidden_TD = torch.cat((hidden_TD, out_TD[-1:].to(hidden_TD.dtype)))
    return guesses


class Checked:
    """Steps an engine, and holds every guess against `guesses_over_the_whole`."""

    def __init__(self, engine: Engine) -> None:
        assert engine.drafter is not None
        self.engine = engine
        # By sequence (request id, index): lengths of the sequence when a guess was checked.
        self.places: dict[tuple[int, int], list[int]] = {}
        self.deepest = 0

    def step(self) -> list[Event]:
        events = self.engine.step()
        for seq in self.engine.scheduler.running:
            self.check(seq)
        return events

    def drain(self) -> list[Event]:
        events: list[Event] = []
        while self.engine.has_work:
            events += self.step()
        return events

    def check(self, seq: Sequence) -> None:
        engine = self.engine
        assert engine.drafter is not None
        found = engine.drafter.guesses(seq)
        if found is None:
            return
        count = min(len(found.tokens), 4)
        tokens = guesses_over_the_whole(engine.model, seq, seq.token_ids, count, engine.vocabulary)
        assert found.tokens[:count] == tokens, (len(seq), count)
        self.places.setdefault((seq.request_id, seq.index), []).append(len(seq))
        self.deepest = max(self.deepest, count)


def chain_with_mtp(successors: dict[int, int], *, wrong: frozenset[int] = frozenset()) -> CausalLM:
    """As engine_parts.chain_model, with an MTP module that always foresees the token after the
    next, but after those in `wrong`."""
    width = 2 * ((VOCABULARY + 1) // 2)
    model = CausalLM(ModelConfig.from_dict({**DENSE, "hidden_size": width}), mtp=True)
    module = model.mtp[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (model.model.norm, module.enorm, module.shared_head.norm):  # type: ignore[union-attr]
            norm.weight.fill_(1.0)  # type: ignore[operator, union-attr]
        for token in range(VOCABULARY):
            model.model.embed_tokens.weight[token, token] = 1.0
            model.lm_head.weight[successors.get(token, EOS), token] = 10.0
            seen = token if token not in wrong else (token + 1) % 256
            module.eh_proj.weight[seen, token] = 1.0  # type: ignore[index, union-attr]
    return model.eval()
