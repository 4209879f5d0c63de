"""What is learnt at which step: a pure function of the seed, the step and the shards.

Every source is an endless stream of tokens: its documents in a seeded order, epoch after epoch.
Step s takes of it the documents that begin in [s, s + 1) times the source's tokens a step. So the
position in the data is the step number, shares hold by tokens, and every document comes exactly
once an epoch, whole.

N pieces (documents, or what they were cut into)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mull.errors import RecipeError
from mull.train.batch import Example
from mull.train.data.shards import Shard

Part = Literal["all", "train", "validation"]

# Of so many pieces of a file one is held out for validation, where validation is asked for.
_HELD_OUT = 20


@dataclass(frozen=True)
class Source:
    """A shard and its share of the tokens beside the other sources.

    is_whole: its documents mean nothing in pieces (chats): those longer than max_length are left
    out, others are cut. part: which of its pieces are taken; task-made shards have their own split
    and take all.
    """

    name: str
    shard: Shard
    weight: float = 1.0
    is_whole: bool = False
    part: Part = "all"


@dataclass(frozen=True)
class SourceReport:
    """What became of a source: documents of the shard, pieces drawn from, documents that were cut,
    documents left out as too long, share of tokens, tokens of one epoch."""

    name: str
    documents: int
    pieces: int
    cut: int
    too_long: int
    share: float
    tokens: int
    counts: dict[str, int]


class DataMix:
    """Batches of about `batch_tokens` tokens, exactly so on the average; one batch may have up to a
    document of each source more or less. learn_all: every token is learnt, not only what an
    assistant says. Raises RecipeError for what could give an empty batch.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int,
        batch_tokens: int,
        max_length: int,
        learn_all: bool,
    ) -> None:
        if max_length < 2:
            raise RecipeError(f"max_length is {max_length}; nothing can be learnt from one token")
        total = sum(source.weight for source in sources)
        self._streams = [
            _Stream(source, source.weight / total, f"{seed}/{index}", max_length)
            for index, source in enumerate(sources)
        ]
        self.batch_tokens = batch_tokens
        self._learn_all = learn_all
        needed = min(stream.longest / stream.share for stream in self._streams)
        if batch_tokens < needed:
            raise RecipeError(
                f"batch_tokens is {batch_tokens}, too few for sequences this long: a batch could "
                f"be empty; give at least {math.ceil(needed)} or a smaller max_length"
            )

    def batch(self, step: int) -> list[Example]:
        """The sequences of that step (from 0). A pure function: no state is kept between calls."""
        return [
            stream.shard.read(start, end, all_learnt=self._learn_all)
            for stream in self._streams
            for start, end in stream.pieces(step, self.batch_tokens)
        ]

    @property
    def reports(self) -> list[SourceReport]:
        return [stream.report for stream in self._streams]

    def steps_of(self, epochs: float) -> int:
        """Steps after which the source that takes longest has been seen so many times."""
        return max(
            math.ceil(epochs * stream.tokens / (stream.share * self.batch_tokens))
            for stream in self._streams
        )


class _Stream:
    """One source as an endless stream of pieces."""

    def __init__(self, source: Source, share: float, name: str, max_length: int) -> None:
        self.shard = source.shard
        self.share = share
        self._name = name
        starts_N, ends_N, cut, too_long = _pieces(source, max_length)
        if source.part != "all" and len(starts_N):
            is_held_out_N = _held_out(len(starts_N), source.shard.key)
            taken_N = is_held_out_N == (source.part == "validation")
            starts_N, ends_N = starts_N[taken_N], ends_N[taken_N]
        if not len(starts_N):
            raise RecipeError(_emptiness(source, too_long, max_length))
        self._starts_N, self._lengths_N = starts_N, ends_N - starts_N
        self.tokens = int(self._lengths_N.sum())
        self.longest = int(self._lengths_N.max())
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None
        self.report = SourceReport(
            source.name, self.shard.documents, len(starts_N), cut, too_long, share, self.tokens,
            self.shard.counts,
        )  # fmt: skip

    def pieces(self, step: int, batch_tokens: int) -> list[tuple[int, int]]:
        """(start, end) in the shard of what begins within the step's stretch of the stream."""
        # In whole numbers of tokens, so that neighbouring stretches meet exactly.
        at, until = (math.floor(each * self.share * batch_tokens) for each in (step, step + 1))
        found: list[tuple[int, int]] = []
        while at < until:
            epoch, offset = divmod(at, self.tokens)
            stop = min(self.tokens, offset + until - at)
            order_N, begins_N = self._epoch(epoch)
            first, last = np.searchsorted(begins_N, (offset, stop))
            for piece in order_N[first:last]:
                start = int(self._starts_N[piece])
                found.append((start, start + int(self._lengths_N[piece])))
            at += stop - offset
        return found

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of an epoch's pieces, and where each begins in the epoch's stream. Kept is the
        latest epoch's only: what is asked again and again, and can always be had anew."""
        kept = self._order
        if kept is None or kept[0] != epoch:
            order_N = _permutation(f"{self._name}/{epoch}", len(self._starts_N))
            lengths_N = self._lengths_N[order_N]
            kept = self._order = (epoch, order_N, np.cumsum(lengths_N) - lengths_N)
        return kept[1], kept[2]


def _pieces(source: Source, max_length: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """(starts, ends, documents cut, documents left out). A document is cut into equal pieces, as
    few as can be: a short rest would teach little."""
    ends_N = source.shard.ends_N
    starts_N = np.concatenate([[0], ends_N[:-1]]) if len(ends_N) else ends_N
    lengths_N = ends_N - starts_N
    is_long_N = lengths_N > max_length
    if source.is_whole:
        kept_N = ~is_long_N
        return starts_N[kept_N], ends_N[kept_N], 0, int(is_long_N.sum())
    counts_N = -(-lengths_N // max_length)
    first_N = np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
    index_N = np.arange(len(first_N)) - first_N
    counts, lengths = np.repeat(counts_N, counts_N), np.repeat(lengths_N, counts_N)
    starts = np.repeat(starts_N, counts_N)
    begins, stops = starts + index_N * lengths // counts, starts + (index_N + 1) * lengths // counts
    return begins, stops, int(is_long_N.sum()), 0


def _held_out(count: int, key: str) -> np.ndarray:
    """bool [N]: one of twenty, at least one where there are two, the same ones every time."""
    order_N = _permutation(f"held out/{key}", count)
    held = np.zeros(count, bool)
    held[order_N[: max(int(count > 1), count // _HELD_OUT)]] = True
    return held


def _permutation(name: str, count: int) -> np.ndarray:
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).permutation(count)


def _emptiness(source: Source, too_long: int, max_length: int) -> str:
    if too_long:
        return (
            f"data {source.name}: all {too_long} documents are longer than max_length "
            f"{max_length} tokens; give a larger one"
        )
    if source.part == "validation":
        return f"data {source.name}: too little to hold something out for validation"
    return f"data {source.name}: there is nothing in it to learn from"
