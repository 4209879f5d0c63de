"""Grammars for answers: compiled off the engine's thread, kept, and followed token by token.

A `Grammar` says what may follow the thinking; a `Constraint` is one sequence's way through it. The
grammars themselves are llguidance's (Rust): a token mask costs tens of microseconds.

B sequences (rows) · V vocabulary
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from functools import cached_property

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from mull.errors import RequestError
from mull.text.templates import ChatTemplate
from mull.text.tokenizer import Tokenizer

MAX_SOURCE_CHARS = 400_000
KEPT = 64
# What a hostile grammar may cost: about a second to compile, some milliseconds a step.
_LIMITS = LLParserLimits(
    max_grammar_size=200_000,
    step_lexer_fuel=100_000,
    step_max_items=30_000,
    max_lexer_states=50_000,
    verbose_errors=False,
)
# An answer whose last tokens repeat so few is led out of the loop, wherever its grammar has a way:
# small models fall into endless digits where a number or a time may have any number of them.
_LOOP_TOKENS, _LOOP_PERIOD = 32, 8
_DIGITS = frozenset(b"0123456789")
# Newlines between the closing tag and the answer, as models are trained to write them.
_LEADING_NEWLINES = 2


class Words:
    """A tokenizer as grammars see it: the bytes of every token, and which tokens matter around the
    thinking. Made once per model, at the first constrained request."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, *, ends: Iterable[int], vocabulary: int
    ) -> None:
        self.vocabulary = vocabulary
        self.bytes_of = [tokenizer.token_bytes(token) for token in range(vocabulary)]
        self.open = template.think_open.encode()
        self.close = template.think_close.encode()
        self.open_id = tokenizer.special_ids.get(template.think_open)
        self.close_id = tokenizer.special_ids.get(template.think_close)
        self.newlines = frozenset(
            i for i, raw in enumerate(self.bytes_of) if raw and not raw.strip(b"\n")
        )
        known = sorted(token for token in ends if token < vocabulary)
        if not known:
            raise RequestError(
                "this model has no token that ends an answer, so its answers can follow no grammar"
            )
        special = {token for token in tokenizer.special_ids.values() if token < vocabulary}
        self._special = special | {i for i in range(vocabulary) if tokenizer.is_control(i)}
        self.backend = LLTokenizer(
            TokenizerWrapper(_Wrapped(tokenizer, self.bytes_of, sorted(self._special), known[0])),
            eos_token=known,
            slices=LLTokenizer.json_slices(),
        )

    @cached_property
    def first_bytes(self) -> np.ndarray:
        """int16 [V], -1 for tokens that are no text."""
        return np.array(
            [
                -1 if not raw or i in self._special else raw[0]
                for i, raw in enumerate(self.bytes_of)
            ],
            dtype=np.int16,
        )

    @cached_property
    def spilling(self) -> list[int]:
        """Tokens that may end a closing tag written as text and say more than newlines after it."""
        last = self.close[-1:]
        return [
            i
            for i, raw in enumerate(self.bytes_of)
            if raw.partition(last)[2].strip(b"\n") and i not in self._special
        ]

    def opens(self, spelled: bytes) -> list[int]:
        """Tokens that go on spelling the thinking's opening tag after `spelled`."""
        if self.open_id is not None:
            return [] if spelled else [self.open_id]
        rest = self.open[len(spelled) :]
        return [i for i, raw in enumerate(self.bytes_of) if raw and _begins(rest, raw)]

    def spills(self, spelled: bytes) -> list[int]:
        """Tokens that would complete the closing tag after `spelled` and begin the answer."""
        return [
            i
            for i in self.spilling
            if (spelled + self.bytes_of[i]).partition(self.close)[2].strip(b"\n")
        ]


def _begins(tag: bytes, raw: bytes) -> bool:
    return tag.startswith(raw) or (raw.startswith(tag) and not raw[len(tag) :].strip(b"\n"))


class _Wrapped:
    """The attributes llguidance asks of a tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer, tokens: list[bytes], special: list[int], end: int
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = end
        self.bos_token_id = tokenizer.bos_id
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"))


class Grammar:
    """A compiled grammar; any number of answers may follow it at the same time."""

    def __init__(self, words: Words, matcher: LLMatcher) -> None:
        self.words = words
        self._matcher = matcher
        self._lock = threading.Lock()

    def start(self) -> LLMatcher:
        with self._lock:
            return self._matcher.deep_copy()


class Grammars:
    """Compiles grammars for one model and keeps the last of them. Thread-safe; call it from the
    thread that takes requests in, never from the engine's."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, *, ends: Iterable[int], vocabulary: int
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._ends = frozenset(ends)
        self._vocabulary = vocabulary
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._keeping = threading.Lock()
        self._compiling = threading.Lock()  # one at a time: nobody's schema may take every core

    def compile(self, source: str) -> Grammar:
        """The grammar of a source in llguidance's Lark dialect; RequestError for a bad one."""
        found = self._find(source)
        if found is not None:
            return found
        if len(source) > MAX_SOURCE_CHARS:
            raise RequestError(
                f"the answer's form has {len(source)} characters, but at most "
                f"{MAX_SOURCE_CHARS} fit"
            )
        with self._compiling:
            found = self._find(source)
            if found is None:
                matcher = LLMatcher(
                    self._words.backend,
                    LLMatcher.grammar_from_lark(source),
                    log_level=0,
                    limits=_LIMITS,
                )
                if matcher.is_error():
                    raise RequestError(
                        f"the answer's form cannot be obeyed: {_first_line(matcher.get_error())}"
                    )
                found = Grammar(self._words, matcher)
                self._keep(source, found)
        return found

    @cached_property
    def _words(self) -> Words:
        return Words(self._tokenizer, self._template, ends=self._ends, vocabulary=self._vocabulary)

    def _find(self, source: str) -> Grammar | None:
        with self._keeping:
            if source in self._kept:
                self._kept.move_to_end(source)
            return self._kept.get(source)

    def _keep(self, source: str, grammar: Grammar) -> None:
        with self._keeping:
            self._kept[source] = grammar
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)


class Constraint:
    """One answer on its way through a grammar. The thinking is free; the grammar begins after it.

    is_thinking: the prompt has opened the thinking. may_think: it has not, but the model may.
    breaks_loops: see _LOOP_TOKENS.
    """

    def __init__(
        self, grammar: Grammar, *, is_thinking: bool, may_think: bool, breaks_loops: bool = True
    ) -> None:
        self._words = grammar.words
        self._matcher = grammar.start()
        self.is_thinking = is_thinking
        self.is_complete = False
        self.fault = ""
        # As much of the opening tag as has been spelled; None when no thinking can begin any more.
        self._opening: bytes | None = b"" if may_think and not is_thinking else None
        self._newlines = _LEADING_NEWLINES if is_thinking else 0
        self._follows = True  # what has been said so far begins the grammar
        self._tail = b""
        self._breaks_loops = breaks_loops
        self._last: list[int] = []

    @property
    def is_free(self) -> bool:
        """Whether any token may come, and any after it: the thinking of a model whose closing tag
        is a token."""
        return self.is_thinking and self._words.close_id is not None

    def allowed(self) -> np.ndarray | None:
        """bool [V], the tokens that may come next; None where all may."""
        if self.is_free:
            return None
        words = self._words
        if self.is_thinking:
            spelled = _partial(self._tail, words.close)
            spills = words.spills(spelled) if spelled else []
            if not spills:
                return None
            allowed_V = np.ones(words.vocabulary, dtype=bool)
            allowed_V[spills] = False
            return allowed_V
        allowed_V = np.zeros(words.vocabulary, dtype=bool)
        if self._follows:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            allowed_V = np.unpackbits(bits, count=words.vocabulary, bitorder="little").view(bool)
            self._note_fault()
            allowed_V = self._out_of_loop(allowed_V)
        if self._newlines:
            allowed_V[list(words.newlines)] = True
        if self._opening is not None:
            allowed_V[words.opens(self._opening)] = True
        return allowed_V

    def push(self, token: int, *, is_thinking: bool, is_forced: bool = False) -> None:
        """A token has been appended, after which the answer is (or is not) in its thinking."""
        if self.is_thinking or is_thinking:
            self._think(token, is_thinking)
            return
        if is_forced:
            return  # the blank line after a closing tag
        if self._follows and self._matcher.try_consume_tokens([token]) == 1:
            self._newlines = 0
            self._last = [*self._last[1 - _LOOP_TOKENS :], token]
            self.is_complete = self._matcher.is_stopped()
        elif self._newlines and token in self._words.newlines:
            self._newlines -= 1
            return
        elif self._opening is None:
            self.fault = self.fault or "a token was chosen that the grammar does not allow"
        else:
            self._follows = False
        self._spell(token)
        self._note_fault()

    def _out_of_loop(self, allowed_V: np.ndarray) -> np.ndarray:
        """Without what would go on with the loop that the answer has fallen into, if it has."""
        last = self._last
        if not self._breaks_loops or len(last) < _LOOP_TOKENS:
            return allowed_V
        period = next((p for p in range(1, _LOOP_PERIOD + 1) if last[p:] == last[:-p]), None)
        if period is None:
            return allowed_V
        said = frozenset(b"".join(self._words.bytes_of[token] for token in last[-period:]))
        ways_on = _DIGITS if said <= _DIGITS else said
        kept_V = allowed_V & ~np.isin(self._words.first_bytes, list(ways_on))
        return kept_V if kept_V.any() else allowed_V

    def _think(self, token: int, is_thinking: bool) -> None:
        if is_thinking:
            self._tail = (self._tail + self._words.bytes_of[token])[-len(self._words.close) :]
        elif self.is_thinking:
            self._matcher.reset()
            self._follows, self._newlines, self._tail = True, _LEADING_NEWLINES, b""
        self._opening = None
        self.is_thinking = is_thinking

    def _spell(self, token: int) -> None:
        """Follow the opening tag as well, as long as this may become one."""
        if self._opening is not None:
            spelled = self._opening + self._words.bytes_of[token]
            self._opening = spelled if self._words.open.startswith(spelled) else None

    def _note_fault(self) -> None:
        if self._matcher.is_error():
            self.fault = self.fault or _first_line(self._matcher.get_error())


def apply_masks(logits_BV: Tensor, constraints: Rows[Constraint | None]) -> None:
    """Rules out, in place, what each row's constraint does not allow."""
    for row, constraint in enumerate(constraints):
        allowed_V = None if constraint is None else constraint.allowed()
        # A grammar that failed allows nothing; its answer ends with the next token, whichever.
        if allowed_V is None or not allowed_V.any():
            continue
        if logits_BV.device.type == "cpu":
            # torch would wake a team of threads for so long a row, beside the kernels' own.
            np.putmask(logits_BV[row].numpy(), ~allowed_V, -np.inf)
        else:
            banned_V = torch.from_numpy(~allowed_V).to(logits_BV.device)
            logits_BV[row].masked_fill_(banned_V, -torch.inf)


def _partial(text: bytes, tag: bytes) -> bytes:
    """The longest end of `text` that `tag` begins with, short of the whole tag."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-length:]):
            return text[-length:]
    return b""


def _first_line(error: str) -> str:
    return error.strip().partition("\n")[0][:300]
