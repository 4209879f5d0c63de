"""What goes into the engine and what comes out: plain data, checked on the way in.

A `Request` is a prompt in token ids with its sampling and thinking wishes; the engine answers with
`Event`s, the last of each sample carrying the whole `Output`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mull.engine.grammar import Grammar
from mull.errors import RequestError, shown

Kind = Literal["thinking", "answer", "tool_call", "end"]
FinishReason = Literal["stop", "length", "cancelled"]

MAX_COUNT = 2**31 - 1
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1000


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn; every field is checked here, a bad one raises RequestError.

    The order of work is that of transformers' processors: repetition penalty (prompt and answer),
    presence and frequency penalties (answer only), logit_bias, temperature, top_k, top_p, min_p.
    temperature 0 is greedy. max_tokens None means as many as the context holds. logprobs N asks for
    the log-probability of each token and of the N best, under the model's own distribution (before
    penalties and temperature); with tempered_logprobs at the temperature, as policy gradients need
    it. A seed fixes the tokens whatever else the engine is doing.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None
    tempered_logprobs: bool = False
    seed: int | None = None
    n: int = 1
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, MAX_COUNT)
        _check_float("temperature", self.temperature, 0.0, 10.0)
        _check_float("top_p", self.top_p, 0.0, 1.0, above_low=True)
        _check_int("top_k", self.top_k, 0, MAX_COUNT)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, 20)
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), 2**64 - 1)
        _check_int("n", self.n, 1, 256)
        for name in ("ignore_eos", "tempered_logprobs"):
            if not isinstance(value := getattr(self, name), bool):
                raise RequestError(f"{name} is {shown(value)}, but must be true or false")
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        object.__setattr__(self, "stop", _checked_stops(self.stop))
        object.__setattr__(self, "stop_token_ids", _checked_stop_ids(self.stop_token_ids))

    @property
    def is_greedy(self) -> bool:
        # Below this, dividing by the temperature leaves one token in float32 anyway.
        return self.temperature < 1e-5

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def has_filters(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def is_plain(self) -> bool:
        """Whether a token is drawn from the logits as they are, and no other's chance is told."""
        return not (self.has_penalties or self.logit_bias or self.logprobs)


@dataclass(frozen=True)
class Request:
    """One prompt and what is wanted of it.

    namespace: requests share cached prefixes only with requests of the same namespace (an owner).
    starts_in_thinking: the prompt's last tokens have already opened the thinking.
    think_budget: at most this many thinking tokens; then the thinking is closed at the next
    sentence end, at the latest 10 % over. 0 closes it at once; None leaves it to the model.
    tools_offered: the prompt describes tools, so what looks like a call is one.
    speculate: tokens may be guessed and checked, several a step, where that is faster; the answer
    is the same either way.
    grammar: what follows the thinking obeys it, and the answer ends as soon as it is complete.
    may_think: the model may open a thinking itself, before what the grammar asks for.
    prompt_logprobs: as SamplingParams.logprobs, of the prompt's own tokens; such a prompt is
    computed whole, whatever of it the cache holds.
    is_raw: the text is wanted as it is: no tag in it means anything.
    streams: text is wanted as it is said. Without, all of it may come at the end, where nothing
    (a budget, a stop string, a grammar) needs it before.
    """

    prompt_ids: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    namespace: str = ""
    starts_in_thinking: bool = False
    think_budget: int | None = None
    detect_loops: bool = True
    tools_offered: bool = False
    speculate: bool = True
    grammar: Grammar | None = None
    may_think: bool = False
    prompt_logprobs: int | None = None
    is_raw: bool = False
    streams: bool = True

    def __post_init__(self) -> None:
        if len(self.prompt_ids) == 0:
            raise RequestError("prompt_ids is empty, but must hold at least one token")
        if self.think_budget is not None:
            _check_int("think_budget", self.think_budget, 0, MAX_COUNT)
        if self.prompt_logprobs is not None:
            _check_int("prompt_logprobs", self.prompt_logprobs, 0, 20)
        if not isinstance(self.namespace, str):
            raise RequestError(f"namespace is {shown(self.namespace)}, but must be a string")


def check_fits(request: Request, *, ids: int, drawn: int, limit: int) -> None:
    """RequestError where an engine could never serve the request. ids: of the embedding; drawn: of
    those, the ones that can be sampled; limit: tokens of a sequence, prompt included."""
    for token_id in request.prompt_ids:
        if not isinstance(token_id, int) or not 0 <= token_id < ids:
            raise RequestError(
                f"prompt_ids holds {shown(token_id)}, but token ids of this model are whole "
                f"numbers from 0 to {ids - 1}"
            )
    length = len(request.prompt_ids)
    if length >= limit:
        raise RequestError(
            f"the prompt has {length} tokens, but at most {limit - 1} fit (context and cache hold "
            f"{limit}): shorten it by {length - limit + 1} tokens"
        )
    for name in ("logit_bias", "stop_token_ids"):
        for token_id in getattr(request.sampling, name):
            if token_id >= drawn:
                raise RequestError(
                    f"{name} names token {token_id}, but must name ids from 0 to {drawn - 1}"
                )


@dataclass(frozen=True)
class TokenLogprob:
    """logprob None: the engine put this token there itself (a closed thinking budget), or nothing
    came before it (the first of a prompt)."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """arguments: JSON text, as far as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Usage:
    """prompt_tokens includes cached_tokens; completion_tokens includes reasoning_tokens."""

    prompt_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timing:
    """ttft_s: seconds from submit to the first token; tokens_per_s: decode rate after it."""

    ttft_s: float | None
    tokens_per_s: float | None
    total_s: float


@dataclass(frozen=True)
class Output:
    """One finished sample.

    token_ids holds every token as sampled, the end token and those of a stop string included, so
    that a trainer never tokenises text again; text does not hold them. forced_positions are the
    indices into token_ids which the engine put there itself: a trainer must mask them.
    finish_details may hold: "stop_string", "stop_token_id", "loop" (period, repeats, where),
    "thinking_closed" (reason, thinking_tokens), "preemptions", "context_full", "grammar_fault" (why
    the grammar could not be followed to its end).
    """

    request_id: int
    index: int
    thinking: str
    text: str
    tool_calls: list[ToolCall]
    token_ids: list[int]
    forced_positions: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason
    finish_details: dict[str, Any]
    usage: Usage
    timing: Timing
    prompt_logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True)
class Event:
    """Something a caller may show at once. kind "end" comes exactly once per sample, with output.

    token_ids and logprobs are those sampled since the sample's last event: a token whose text is
    held back (half a character, a possible stop string or tag) comes with the next event.
    """

    request_id: int
    index: int
    kind: Kind
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_call: ToolCall | None = None
    output: Output | None = None


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(
            f"{name} is {shown(value)}, but must be a whole number from {low} to {high}"
        )


def _check_float(
    name: str, value: object, low: float, high: float, *, above_low: bool = False
) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_excluded = above_low and value == low
    # The bounds are finite, so that what lies between them is too.
    if is_number and not is_excluded and low <= value <= high:  # type: ignore[operator]
        return
    span = f"above {low:g} and at most {high:g}" if above_low else f"from {low:g} to {high:g}"
    raise RequestError(f"{name} is {shown(value)}, but must be a number {span}")


def _checked_bias(bias: object) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise RequestError(f"logit_bias is {shown(bias)}, but must map token ids to numbers")
    for token_id, value in bias.items():
        _check_int("a token id in logit_bias", token_id, 0, MAX_COUNT)
        _check_float(f"logit_bias of token {token_id}", value, -100.0, 100.0)
    return {token_id: float(value) for token_id, value in bias.items()}


def _checked_stops(stop: object) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or len(stops) > MAX_STOPS:
        raise RequestError(f"stop is {shown(stop)}, but must be up to {MAX_STOPS} strings")
    for text in stops:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise RequestError(
                f"a stop string is {shown(text)}, but must hold "
                f"1 to {MAX_STOP_CHARACTERS} characters"
            )
    return tuple(stops)


def _checked_stop_ids(ids: object) -> tuple[int, ...]:
    if not isinstance(ids, Sequence | set | frozenset) or isinstance(ids, str):
        raise RequestError(f"stop_token_ids is {shown(ids)}, but must be a list of token ids")
    for token_id in ids:
        _check_int("a token id in stop_token_ids", token_id, 0, MAX_COUNT)
    return tuple(ids)
