"""Whether, for whom and how far to guess ahead in a step, and where the guesses come from.

A step over more rows takes longer; a right guess saves its sequence a whole step. Both sides are
measured: the cost of a step by its rows (StepCosts), and how often guesses of each kind are right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast, get_args

import numpy as np

from mull.engine.decode_loop import only_draws
from mull.engine.guess_loop import MOST_TOKENS, GuessedTokens, GuessLoop
from mull.engine.lookup import PromptLookup
from mull.engine.mtp import MtpDrafter
from mull.engine.mtp_gate import DEEPEST, LEAST_GAIN, Choice, MtpGate
from mull.engine.paged import BlockTables
from mull.engine.reply import Reply
from mull.engine.scheduler import Chunk, Scheduler
from mull.engine.sequence import Sequence
from mull.engine.step_costs import StepCosts
from mull.errors import RequestError

Mode = Literal["auto", "off", "ngram", "mtp"]

# Of one sequence in one step. Beyond it even sure guesses add little to the rate.
MAX_DRAFT = 15
# Guesses less likely than this are not worth a look.
_LEAST_CHANCE = 0.1
# A probe looks at a first guess, a second, and a third that stands for all further ones.
_PROBED = 3


class Speculation:
    """Puts drafts on the chunks of a step. Never changes what is generated, only how fast.

    mode: ngram looks for the end of a sequence earlier in it (PromptLookup), mtp asks the drafter,
    off guesses nothing.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        mode: Mode,
        drafter: MtpDrafter | None = None,
        loop: GuessLoop | None = None,
    ) -> None:
        self.mode = mode
        self.drafter, self.loop = drafter, loop
        self.costs = StepCosts()
        self.gate = MtpGate()
        self.new_lookup = PromptLookup
        self.drafted = 0
        self.accepted = 0
        self._blocks = scheduler.blocks
        self._max_rows = scheduler.max_batch_tokens
        self.is_decode = self._could_pay = False
        self._quiet_steps = 0  # since a guess was last right
        self._lookups: dict[Sequence, PromptLookup] = {}
        self._choice: Choice = "guess"

    def propose(self, chunks: list[Chunk], tokens_left: Callable[[Sequence], int]) -> None:
        """Extend the chunks by drafts where that pays; tokens_left: in an answer at most."""
        # Beside a prompt a step is bound by arithmetic: rows cost what they bring.
        self.is_decode = self.mode != "off" and all(chunk.seq.is_decoding for chunk in chunks)
        rows, ends = sum(chunk.count for chunk in chunks), len(chunks)
        self._could_pay = self.is_decode and self._pays_at_best(rows, ends)
        if not self._could_pay:
            return
        guesses = self._lookup if self.drafter is None else self._ask_drafter
        for i, length in self._best(guesses(chunks, tokens_left), rows, ends).items():
            self._extend(chunks[i], length)

    @property
    def steps_before_a_look(self) -> int | None:
        """How many steps may go by before the text is searched for guesses again; None: any.

        A quarter of those since guesses were last right: where a repetition begins not many of its
        tokens are lost, and a wrong guess in the middle of it costs none.
        """
        return max(1, self._quiet_steps // 4) if self.mode == "ngram" and self._could_pay else None

    @property
    def rests(self) -> bool:
        """Whether nobody guesses between two steps."""
        return self.drafter is None or self._choice != "guess"

    def after_step(self, ends: int, *, steps: int = 1) -> Choice:
        """What the drafter does after a step, or several, in which so many sequences have drawn."""
        assert self.drafter is not None
        if self.mode == "off":
            self._choice = "sleep"
        else:
            self._choice = self.gate.choose(
                ends, self.costs, self.drafter.rates, is_decode=self.is_decode, steps=steps
            )
        return self._choice

    @property
    def least_depth(self) -> int:
        """Guesses to be made though they may not pay: to see how often further ones are right."""
        return _PROBED if self.gate.is_probe else 1

    def run(
        self,
        chunks: list[Chunk],
        replies: dict[Sequence, Reply],
        tables: BlockTables,
        interrupt: np.ndarray,
    ) -> GuessedTokens | None:
        """Several steps of a sequence that is alone, in one call, if guesses pay for it and nothing
        needs Python between them; draws and computes, and changes nothing else."""
        drafter, loop, seq = self.drafter, self.loop, chunks[0].seq
        if drafter is None or loop is None or len(chunks) > 1 or not loop.is_native:
            return None
        if not self.is_decode or self._choice != "guess" or interrupt[0] or not seq.speculate:
            return None
        reply = replies[seq]
        steps = loop.steps(streams=not reply.reads_at_end)
        most = min(reply.tokens_left, steps * (DEEPEST + 1), MOST_TOKENS)
        is_possible = only_draws(chunks[0]) and loop.has_room(seq, most, self._blocks)
        if not is_possible or drafter.lacks_keys(seq):
            return None
        self._blocks.append(seq, most + DEEPEST)
        guesses = drafter.guesses(seq)
        return loop.run(
            seq,
            tables,
            reply.watched,
            interrupt,
            plan=drafter.loop_plan(self.costs, self.least_depth),
            step_costs=[0.0, *(self.costs.cost(rows) for rows in range(1, DEEPEST + 2))],
            least_chance=_LEAST_CHANCE,
            least_rate=LEAST_GAIN / self.costs.cost_in_a_call(1),
            draft=([], []) if guesses is None else (guesses.tokens, guesses.sureness),
            checked=len(chunks[0].draft),
            steps=steps,
            most=most,
            left=reply.tokens_left,
        )

    def learn(self, chunks: list[Chunk], seconds: float, *, steps: int = 1) -> None:
        """What each of the steps took for which drafts were last proposed."""
        self._quiet_steps += steps
        # One by one is not how a sequence goes on that is alone: such steps are rare, and dearer.
        is_odd = steps == 1 and len(chunks) == 1 and self.loop is not None and self.loop.is_native
        if self.is_decode and not is_odd:
            observe = self.costs.observe if steps == 1 else self.costs.observe_in_a_call
            observe(sum(chunk.rows for chunk in chunks), seconds)

    def looped(
        self, seq: Sequence, first: int, said: GuessedTokens, seconds: float, *, goes_on: bool
    ) -> None:
        """What those steps have shown; first: the position they began at; seconds: all they took,
        of which what lies around the steps counts as a part of guessing; goes_on: the answer."""
        assert self.drafter is not None
        if self.is_decode:
            around = seconds - sum(sum(each.seconds[:3]) for each in said.rounds)
            around = max(0.0, around) / len(said.rounds)
            made = [*(len(each.guessed) for each in said.rounds[1:]), len(said.guessed)]
            for each, passes in zip(said.rounds, made, strict=True):
                step, keys, anew, further = each.seconds
                self.costs.observe(each.rows, step)
                self.costs.observe_extra("fill", keys)
                if passes:
                    self.costs.observe_extra("guess", anew - further + around)
                if passes > 1:
                    self.costs.observe_extra("deepen", further / (passes - 1))
        # What was checked first has been counted when it was proposed.
        self.drafted += sum(each.rows - 1 for each in said.rounds[1:])
        self.accepted += sum(each.won - 1 for each in said.rounds)
        self.drafter.looped(seq, first, said, goes_on=goes_on)

    def judged(self, right: int) -> None:
        """So many guesses of a step were right."""
        self.accepted += right
        if right > 1:
            self._quiet_steps = 0
        elif right:  # one word of prose comes true by chance
            self._quiet_steps //= 2

    def drop(self, seq: Sequence) -> None:
        self._lookups.pop(seq, None)
        if self.drafter is not None:
            self.drafter.drop(seq)

    def _lookup(
        self, chunks: list[Chunk], tokens_left: Callable[[Sequence], int]
    ) -> list[tuple[float, int]]:
        """(chance, index of its chunk) of every guess worth a look."""
        guesses: list[tuple[float, int]] = []
        for i, chunk in enumerate(chunks):
            seq = chunk.seq
            if not seq.speculate or seq.siblings or not chunk.reaches_end:
                continue
            lookup = self._lookups.get(seq)
            if lookup is None:
                lookup = self._lookups[seq] = self.new_lookup(seq.token_ids, seq.prompt_length)
            if lookup.catch_up():
                most = min(MAX_DRAFT, tokens_left(seq) - 1, self._room(chunk))
                guesses += [(chance, i) for chance in lookup.chances(most, least=_LEAST_CHANCE)]
        return guesses

    def _ask_drafter(
        self, chunks: list[Chunk], tokens_left: Callable[[Sequence], int]
    ) -> list[tuple[float, int]]:
        """As `_lookup`; the drafter's guesses were made after the step before."""
        assert self.drafter is not None
        found: list[tuple[float, int]] = []
        for i, chunk in enumerate(chunks):
            guesses = self.drafter.guesses(chunk.seq)
            if guesses is not None:
                most = min(MAX_DRAFT, tokens_left(chunk.seq) - 1, self._room(chunk))
                found += [(c, i) for c in guesses.chances[: max(0, most)] if c >= _LEAST_CHANCE]
        return found

    def _pays_at_best(self, rows: int, ends: int) -> bool:
        """Whether sure guesses would: if not, nobody need be asked for any."""
        rate = LEAST_GAIN * ends / self.costs.cost_in_a_call(rows)
        return any(
            rows + more <= self._max_rows and (ends + more) / self.costs.cost(rows + more) >= rate
            for more in (ends, 4 * ends, MAX_DRAFT * ends)
        )

    def _best(self, guesses: list[tuple[float, int]], rows: int, ends: int) -> dict[int, int]:
        """Length of the draft by chunk: the likeliest guesses, as many as bring most tokens a
        second."""
        best, best_count = LEAST_GAIN * ends / self.costs.cost_in_a_call(rows), 0
        expected = float(ends)
        # Stable, and chances fall along a draft: each guess comes after those it builds on.
        guesses = sorted(guesses, key=lambda guess: -guess[0])[: self._max_rows - rows]
        for count, (chance, _) in enumerate(guesses, 1):
            expected += chance
            rate = expected / self.costs.cost(rows + count)
            if rate > best:
                best, best_count = rate, count
        lengths: dict[int, int] = {}
        for _, i in guesses[:best_count]:
            lengths[i] = lengths.get(i, 0) + 1
        return lengths

    def _extend(self, chunk: Chunk, length: int) -> None:
        length = min(length, self._room(chunk))  # drafts before this one have taken blocks
        if length > 0:
            chunk.draft = self._first_guesses(chunk.seq, length)
            self._blocks.append(chunk.seq, chunk.rows)
            self.drafted += length

    def _first_guesses(self, seq: Sequence, length: int) -> list[int]:
        if self.drafter is None:
            return self._lookups[seq].propose(length)
        guesses = self.drafter.guesses(seq)
        return [] if guesses is None else guesses.tokens[:length]

    def _room(self, chunk: Chunk) -> int:
        return self._blocks.room(chunk.seq) - chunk.count


def check_mode(mode: str) -> Mode:
    """Raises RequestError for what is no Mode."""
    if not isinstance(mode, str) or mode not in get_args(Mode):
        raise RequestError(f"speculation is {mode!r}: use one of {', '.join(get_args(Mode))}")
    return cast(Mode, mode)


def choose_mode(mode: str, *, has_mtp: bool, name: str = "this model") -> Mode:
    """What `auto` means for a model; RequestError for mtp where it has no modules for it."""
    chosen = check_mode(mode)
    if chosen == "mtp" and not has_mtp:
        raise RequestError(
            f"speculation is 'mtp', but {name} has no multi-token-prediction modules: "
            "use auto or ngram"
        )
    if chosen == "auto":
        return "mtp" if has_mtp else "ngram"
    return chosen
