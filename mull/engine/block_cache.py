"""Which block of the cache belongs to whom: allocation, prefix reuse, reference counts.

Full blocks are known by a chained hash of all tokens their content depends on, seeded with the
owner's namespace; a later request with the same beginning takes them instead of computing them
again. Freed blocks keep their content until they are needed, the least recently used going first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b

from mull.engine.sequence import Sequence


class BlockManager:
    """lookahead: how many tokens after a block what it holds depends on as well: 0, or 1 where the
    cache also serves multi-token prediction, whose keys are made of a token and the next."""

    def __init__(self, num_blocks: int, block_size: int, *, lookahead: int = 0) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.lookahead = lookahead
        self.references = [0] * num_blocks
        self.hash_of: list[bytes | None] = [None] * num_blocks
        self.block_of: dict[bytes, int] = {}
        # Ordered: blocks without reusable content first, then least recently used.
        self.free_list: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self.evictions = 0

    @property
    def free_blocks(self) -> int:
        return len(self.free_list)

    @property
    def used_blocks(self) -> int:
        return self.num_blocks - len(self.free_list)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def cached_prefix(self, seq: Sequence) -> list[int]:
        """Blocks in the cache that hold the sequence's beginning.

        One token at least is always left to compute: without it there would be no logits.
        """
        self.hash_blocks(seq)
        found: list[int] = []
        for block_hash in seq.block_hashes[: (len(seq) - 1) // self.block_size]:
            block = self.block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def can_allocate(self, seq: Sequence, *, spare: int = 0) -> bool:
        """Whether all tokens of the sequence fit, leaving `spare` blocks for others to grow."""
        needed = self.blocks_for(len(seq)) + spare
        if needed <= self.free_blocks:
            return True
        shared = sum(self.references[block] > 0 for block in self.cached_prefix(seq))
        return needed - shared <= self.free_blocks

    def allocate(self, seq: Sequence) -> None:
        """Blocks for all tokens of the sequence; those of a cached prefix count as computed."""
        prefix = self.cached_prefix(seq)
        for block in prefix:
            self._share(block)
        fresh = self.blocks_for(len(seq)) - len(prefix)
        seq.block_table = array("i", prefix + [self._take() for _ in range(fresh)])
        seq.committed_blocks = len(prefix)
        seq.computed = len(prefix) * self.block_size

    def may_append(self, seq: Sequence, tokens: int) -> bool:
        missing = self.blocks_for(seq.computed + tokens) - len(seq.block_table)
        return missing <= self.free_blocks

    def room(self, seq: Sequence) -> int:
        """Tokens beyond the computed ones that have a place, or could be given one at once."""
        return (len(seq.block_table) + self.free_blocks) * self.block_size - seq.computed

    def append(self, seq: Sequence, tokens: int) -> None:
        """Grow the block table so that the next `tokens` tokens have a place."""
        for _ in range(self.blocks_for(seq.computed + tokens) - len(seq.block_table)):
            seq.block_table.append(self._take())

    def commit(self, seq: Sequence) -> None:
        """Make the blocks that computation has just filled known to later requests."""
        full = min(seq.computed, len(seq) - self.lookahead) // self.block_size
        if seq.committed_blocks >= full:
            return
        self.hash_blocks(seq)
        for i in range(seq.committed_blocks, full):
            block_hash, block = seq.block_hashes[i], seq.block_table[i]
            # When two sequences computed the same block side by side, the first stays known.
            if block_hash not in self.block_of:
                self.block_of[block_hash] = block
                self.hash_of[block] = block_hash
        seq.committed_blocks = full

    def fork(self, parent: Sequence, child: Sequence) -> tuple[int, int] | None:
        """Let child share all that parent has computed; returns (from, to) of a block to copy.

        Full blocks are shared, a last partial one is copied because both will write into it; with
        lookahead a last full one too, which each ends with its own next token. Needs one free block
        at most: ask may_fork first.
        """
        full = self._shareable(parent)
        child.block_table = parent.block_table[:full]
        for block in child.block_table:
            self._share(block)
        child.block_hashes = parent.block_hashes[:full]
        child.committed_blocks = full
        child.computed = parent.computed
        if full * self.block_size == parent.computed:
            return None
        child.block_table.append(self._take())
        return parent.block_table[full], child.block_table[full]

    def may_fork(self, parent: Sequence) -> bool:
        return self.free_blocks > 0 or self._shareable(parent) * self.block_size == parent.computed

    def free(self, seq: Sequence) -> None:
        self.commit(seq)  # what had to wait for the next token
        # From the end: the tail of a sequence is less likely to be asked for than its beginning.
        for block in reversed(seq.block_table):
            self._release(block)
        seq.block_table = array("i")
        seq.committed_blocks = 0
        seq.computed = 0

    def trim(self, seq: Sequence) -> None:
        """Give back the blocks beyond what is computed: a rejected draft was written there."""
        kept = self.blocks_for(seq.computed)
        if kept < len(seq.block_table):
            for block in reversed(seq.block_table[kept:]):
                self._release(block)
            # Another table, as after preemption: who keeps a copy sees that blocks have changed.
            seq.block_table = seq.block_table[:kept]

    def _shareable(self, seq: Sequence) -> int:
        """Blocks whose content is the same whatever is said next."""
        return (seq.computed - self.lookahead) // self.block_size

    def _release(self, block: int) -> None:
        self.references[block] -= 1
        if self.references[block] == 0:
            self.free_list[block] = None
            if self.hash_of[block] is None:
                self.free_list.move_to_end(block, last=False)

    def _share(self, block: int) -> None:
        if self.references[block] == 0:
            del self.free_list[block]
        self.references[block] += 1

    def _take(self) -> int:
        block, _ = self.free_list.popitem(last=False)
        self.references[block] = 1
        block_hash = self.hash_of[block]
        if block_hash is not None:
            del self.block_of[block_hash]
            self.hash_of[block] = None
            self.evictions += 1
        return block

    def hash_blocks(self, seq: Sequence) -> None:
        """Bring seq.block_hashes up to all its blocks that are full, and whose next tokens are
        known."""
        size, ahead, hashes = self.block_size, self.lookahead, seq.block_hashes
        for i in range(len(hashes), (len(seq) - ahead) // size):
            previous = hashes[i - 1] if i else _namespace_root(seq.namespace)
            tokens = array("q", seq.token_ids[i * size : (i + 1) * size + ahead]).tobytes()
            hashes.append(blake2b(previous + tokens, digest_size=16).digest())


def _namespace_root(namespace: str) -> bytes:
    return blake2b(
        namespace.encode("utf-8", "surrogatepass"), digest_size=16, person=b"mull-namespace"
    ).digest()
