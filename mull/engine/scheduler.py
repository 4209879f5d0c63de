"""Who computes what in the next step: continuous batching with chunked prefill.

Decoding sequences go first (one token each), then prefill in chunks by arrival, until the step's
token budget is spent. When blocks run out, the latest arrival gives its own back and is computed
again later.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from mull.engine.block_cache import BlockManager
from mull.engine.sequence import Sequence
from mull.errors import QueueFullError


@dataclass(slots=True)
class Chunk:
    """Tokens [start, start + count) of a sequence, to be computed in this step.

    draft: guesses at the tokens that follow, computed along to be checked.
    """

    seq: Sequence
    start: int
    count: int
    draft: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return self.count + len(self.draft)

    @property
    def tokens(self) -> list[int]:
        return self.seq.token_ids[self.start : self.start + self.count] + self.draft

    @property
    def reaches_end(self) -> bool:
        return self.start + self.count == len(self.seq)


class Scheduler:
    """waiting and running are both kept in order of arrival."""

    def __init__(
        self, blocks: BlockManager, *, max_batch_tokens: int, max_running: int, max_queue: int
    ) -> None:
        self.blocks = blocks
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.max_queue = max_queue
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def queued(self) -> int:
        """Samples that wait, those that will start from another's prompt included."""
        return sum(1 + len(seq.siblings) for seq in self.waiting)

    def check_room(self, arriving: int = 0) -> None:
        """Raises QueueFullError when too many wait; arriving: samples beside those known here.

        Thread-safe. With nothing waiting there is room for a request of any size.
        """
        waiting = self.queued + arriving
        if waiting >= self.max_queue:
            raise QueueFullError(f"the queue is full ({waiting} wait): try again later")

    def add(self, seq: Sequence, *, has_room: bool = False) -> None:
        """Raises QueueFullError; has_room: that was checked before."""
        if not has_room:
            self.check_room()
        insort(self.waiting, seq, key=_arrival)

    def schedule(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        budget = self._schedule_decodes(chunks, self.max_batch_tokens)
        budget = self._schedule_prefills(chunks, budget)
        self._admit(chunks, budget)
        return chunks

    def preempt(self, seq: Sequence) -> None:
        """Take the sequence's blocks; its prompt and answer so far are computed again later."""
        self._leave(seq)
        self.blocks.free(seq)
        seq.preemptions += 1
        self.preemptions += 1
        insort(self.waiting, seq, key=_arrival)

    def fork(self, parent: Sequence) -> tuple[list[Sequence], list[tuple[int, int]]]:
        """Start the siblings of a sequence whose prompt has just been computed.

        Returns those that share its blocks from now on and the (from, to) block copies they need;
        the others, for want of room, wait and find the prompt's full blocks in the cache.
        """
        forked: list[Sequence] = []
        copies: list[tuple[int, int]] = []
        for child in parent.siblings:
            if len(self.running) >= self.max_running or not self.blocks.may_fork(parent):
                insort(self.waiting, child, key=_arrival)
                continue
            copy = self.blocks.fork(parent, child)
            if copy is not None:
                copies.append(copy)
            child.cached_tokens = child.prompt_length
            self._enter(child)
            forked.append(child)
        parent.siblings = []
        return forked, copies

    def computed(self, chunk: Chunk) -> None:
        chunk.seq.computed += chunk.count
        self.blocks.commit(chunk.seq)

    def accepted(self, seq: Sequence) -> None:
        """The next token of the sequence's draft was right, so what was computed for it stands."""
        seq.computed += 1
        self.blocks.commit(seq)

    def remove(self, seq: Sequence) -> None:
        """A finished or cancelled sequence gives back all it holds, at once."""
        if seq.is_running:
            self._leave(seq)
            self.blocks.free(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)

    def _schedule_decodes(self, chunks: list[Chunk], budget: int) -> int:
        for seq in list(self.running):
            count = min(seq.uncomputed, budget)
            if count <= 0 or not seq.is_running or not seq.is_decoding:
                continue
            if self._make_room(seq, count):
                chunks.append(Chunk(seq, seq.computed, count))
                budget -= count
        return budget

    def _make_room(self, seq: Sequence, count: int) -> bool:
        if seq.computed + count <= len(seq.block_table) * self.blocks.block_size:
            return True
        while not self.blocks.may_append(seq, count):
            # Never one already scheduled in this step: those arrived before.
            latest = self.running[-1]
            self.preempt(latest)
            if latest is seq:
                return False
        self.blocks.append(seq, count)
        return True

    def _schedule_prefills(self, chunks: list[Chunk], budget: int) -> int:
        for seq in self.running:
            if budget <= 0:
                break
            if not seq.is_decoding:
                budget -= self._prefill(seq, chunks, budget)
        return budget

    def _admit(self, chunks: list[Chunk], budget: int) -> None:
        prefilling = [seq for seq in self.running if not seq.is_decoding]
        for seq in list(self.waiting):
            if budget <= 0 or len(self.running) >= self.max_running:
                break
            if self._is_prefix_under_way(seq, prefilling):
                continue
            # Room for every running sequence to grow, or the newcomer would soon be preempted.
            if not self.blocks.can_allocate(seq, spare=len(self.running)):
                break
            self.waiting.remove(seq)
            self.blocks.allocate(seq)
            seq.prefill_until = len(seq)
            if seq.cached_tokens is None:
                seq.cached_tokens = seq.computed
            self._enter(seq)
            prefilling.append(seq)
            budget -= self._prefill(seq, chunks, budget)

    def _prefill(self, seq: Sequence, chunks: list[Chunk], budget: int) -> int:
        count = min(seq.uncomputed, budget)
        chunks.append(Chunk(seq, seq.computed, count))
        return count

    def _is_prefix_under_way(self, seq: Sequence, prefilling: list[Sequence]) -> bool:
        """Whether one of these is computing a block that this sequence begins with as well.

        Waiting a step or two for it costs less than computing it twice.
        """
        size = self.blocks.block_size
        self.blocks.hash_blocks(seq)
        wanted = seq.block_hashes[: (len(seq) - 1) // size]
        for other in prefilling:
            block = other.computed // size
            if block < min(len(wanted), len(other.block_hashes)) and (
                wanted[block] == other.block_hashes[block]
            ):
                return True
        return False

    def _enter(self, seq: Sequence) -> None:
        seq.is_running = True
        insort(self.running, seq, key=_arrival)

    def _leave(self, seq: Sequence) -> None:
        seq.is_running = False
        self.running.remove(seq)


def _arrival(seq: Sequence) -> int:
    return seq.arrival
