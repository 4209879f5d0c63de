"""A step's tables, kept from step to step, are those a fresh start would make."""

import random
from array import array

import torch
from engine_parts import LLAMA
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.engine.cache import PagedCache
from mull.engine.paged import BlockTables, PagedSequences
from mull.engine.request import Request
from mull.engine.scheduler import Chunk
from mull.engine.sequence import Sequence
from mull.model.config import ModelConfig

SIZE = 4
FIELDS = ("ids_T", "positions_T", "slots_T", "query_starts_B1", "context_B", "block_table_BM")


def make_sequence(rng: random.Random, arrival: int) -> Sequence:
    length = rng.randint(1, 20)
    seq = Sequence(arrival, 0, arrival, Request([rng.randrange(250) for _ in range(length)]), 0)
    place(rng, seq)
    return seq


def place(rng: random.Random, seq: Sequence) -> None:
    """A table of its own, as after a preemption: all but the last token computed."""
    seq.computed = len(seq) - 1
    seq.block_table = array("i", [rng.randrange(512) for _ in range(-(-len(seq) // SIZE))])


def grow(rng: random.Random, seq: Sequence, count: int) -> None:
    for _ in range(count):
        seq.append(rng.randrange(250))
    while len(seq.block_table) * SIZE < len(seq):
        seq.block_table.append(rng.randrange(512))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
def test_tables_kept_between_steps_equal_fresh_ones(seed, batch, one_at_a_time):
    rng = random.Random(seed)
    config = ModelConfig.from_dict(LLAMA)
    cache = PagedCache(
        config, num_blocks=512, block_size=SIZE, dtype=torch.float32, device=torch.device("cpu")
    )
    seqs = [make_sequence(rng, i) for i in range(batch)]
    tables = BlockTables()
    for _ in range(25):
        event = rng.random()
        if event < 0.1:
            seqs[rng.randrange(batch)] = make_sequence(rng, 0)
        elif event < 0.2:
            place(rng, seqs[rng.randrange(batch)])
        elif event < 0.3:
            rng.shuffle(seqs)
        chunks = [Chunk(seq, seq.computed, len(seq) - seq.computed) for seq in seqs]
        kept, fresh = PagedSequences(chunks, cache, tables), PagedSequences(chunks, cache)
        for name in FIELDS[:-1]:
            assert torch.equal(getattr(kept, name), getattr(fresh, name)), name
            assert getattr(kept, name).is_contiguous()
        width = fresh.block_table_BM.shape[1]
        assert torch.equal(kept.block_table_BM[:, :width], fresh.block_table_BM)
        for row_M, seq in zip(kept.block_table_BM.tolist(), seqs, strict=True):
            assert row_M[: len(seq.block_table)] == seq.block_table.tolist()
        for i, position, slot in zip(
            torch.repeat_interleave(torch.arange(batch), kept.query_starts_B1.diff()).tolist(),
            kept.positions_T.tolist(),
            kept.slots_T.tolist(),
            strict=True,
        ):
            assert slot == seqs[i].block_table[position // SIZE] * SIZE + position % SIZE
        for seq in seqs:
            seq.computed = len(seq)
            grow(rng, seq, 1 if one_at_a_time else rng.randint(1, 9))
