"""Native layers of any shape: odd widths, one row, idle experts, ragged batches."""

import copy
from collections.abc import Iterator
from typing import Any

import test_engine_fused as dense
import test_engine_fused_latent as latent
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_variants import examples, using
from torch import Tensor

from mull.engine.cache import PagedCache
from mull.engine.prepare import PRECISIONS, prepare
from mull.engine.scheduler import Chunk
from mull.kernels import library
from mull.model.transformer import CausalLM

VARIANT = st.sampled_from(library.supported() or ["portable"])
# Tokens already cached, and new ones, of each sequence.
BATCH = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=4)
CACHE = st.sampled_from([torch.float32, torch.bfloat16, torch.int8])


@st.composite
def dense_shapes(draw: st.DrawFn, head_dims: st.SearchStrategy[int]) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 3))
    return {
        "model_type": draw(st.sampled_from(["llama", "qwen2", "qwen3"])),
        "hidden_size": draw(st.integers(1, 80)),
        "intermediate_size": draw(st.integers(1, 150)),
        "num_hidden_layers": 2,
        "num_attention_heads": kv_heads * draw(st.integers(1, 5)),
        "num_key_value_heads": kv_heads,
        "head_dim": draw(head_dims),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def latent_shapes(draw: st.DrawFn) -> dict[str, Any]:
    groups, in_group = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    kept = draw(st.integers(1, groups))
    heads = draw(st.integers(1, 5))
    return {
        "hidden_size": draw(st.integers(1, 80)),
        "intermediate_size": draw(st.integers(1, 90)),
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": draw(st.none() | st.integers(1, 40)),
        "kv_lora_rank": draw(st.integers(1, 70)),
        "qk_nope_head_dim": draw(st.integers(1, 40)),
        "qk_rope_head_dim": 2 * draw(st.integers(1, 17)),
        "v_head_dim": draw(st.integers(1, 40)),
        "n_group": groups,
        "topk_group": kept,
        "n_routed_experts": groups * in_group,
        "num_experts_per_tok": draw(st.integers(1, kept * in_group)),
        "n_shared_experts": draw(st.integers(0, 2)),
        "moe_intermediate_size": draw(st.integers(1, 50)),
        "first_k_dense_replace": draw(st.integers(0, 1)),
    }


def chunks_of(lengths: list[tuple[int, int]]) -> tuple[list[Chunk], list[Chunk]]:
    """(What is cached first, what follows) for sequences in scattered blocks of 16."""
    free = iter([7, 2, 12, 0, 5, 15, 9, 1, 4, 14, 3, 10, 6, 8, 11, 13, *range(16, 40)])
    first, second = [], []
    for number, (cached, new) in enumerate(lengths):
        ids = [(7 * i + 31 * number) % dense.VOCABULARY for i in range(cached + new)]
        sequence = dense.Cached(ids, [next(free) for _ in range(-(-len(ids) // 16))])
        if cached:
            first.append(Chunk(sequence, 0, cached))
        second.append(Chunk(sequence, cached, new))
    return first, second


def make_cache(model: CausalLM, dtype: torch.dtype) -> PagedCache:
    return PagedCache(model.config, num_blocks=40, block_size=16, dtype=dtype, device=dense.CPU)


def new_logits(model: CausalLM, lengths: list[tuple[int, int]], dtype: torch.dtype) -> Tensor:
    """Logits of the new tokens, all sequences in one step."""
    cache = make_cache(model, dtype)
    first, second = chunks_of(lengths)
    if first:
        dense.paged_logits(model, cache, first)
    return dense.paged_logits(model, cache, second)


def plain_logits(model: CausalLM, lengths: list[tuple[int, int]]) -> Tensor:
    """The same of the plain model, without a cache."""

    def parts() -> Iterator[Tensor]:
        for chunk in chunks_of(lengths)[1]:
            ids = torch.tensor(chunk.seq.token_ids)
            yield dense.plain_logits(model, ids, [len(ids)])[chunk.start :]

    return torch.cat(list(parts()))


def one_by_one(model: CausalLM, lengths: list[tuple[int, int]], dtype: torch.dtype) -> Tensor:
    """The same logits with every sequence, and its last token, in a step of its own."""
    cache, logits = make_cache(model, dtype), []
    for chunk in chunks_of(lengths)[1]:
        length = chunk.start + chunk.count
        if length > 1:
            before = dense.paged_logits(model, cache, [Chunk(chunk.seq, 0, length - 1)])
            logits.append(before[chunk.start :])
        logits.append(dense.paged_logits(model, cache, [Chunk(chunk.seq, length - 1, 1)]))
    return torch.cat(logits)


def check(
    model: CausalLM, precision: str, cache: torch.dtype, lengths: list[tuple[int, int]]
) -> None:
    fused = prepare(copy.deepcopy(model), precision=precision, device=dense.CPU)
    got = new_logits(fused, lengths, cache)
    assert torch.equal(got, one_by_one(fused, lengths, cache))
    if precision == "fp32" and cache == torch.float32:
        expected = plain_logits(model, lengths)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@examples(40)
@given(
    variant=VARIANT,
    shape=dense_shapes(st.integers(1, 34).map(lambda half: 2 * half)),
    precision=st.sampled_from(list(PRECISIONS)),
    lengths=BATCH,
)
def test_dense_layers_of_any_shape_and_batch(
    variant: str, shape: dict[str, Any], precision: str, lengths: list[tuple[int, int]]
) -> None:
    model = dense.make_model(**shape)
    with using(variant):
        check(model, "fp32", torch.float32, lengths)
        check(model, precision, torch.bfloat16, lengths)


@examples(40)
@given(
    variant=VARIANT,
    shape=dense_shapes(st.integers(1, 20).map(lambda quarter: 4 * quarter)),
    precision=st.sampled_from(list(PRECISIONS)),
    lengths=BATCH,
)
def test_dense_layers_of_any_shape_and_batch_over_an_int8_cache(
    variant: str, shape: dict[str, Any], precision: str, lengths: list[tuple[int, int]]
) -> None:
    with using(variant):
        check(dense.make_model(**shape), precision, torch.int8, lengths)


@examples(40)
@given(
    variant=VARIANT,
    shape=latent_shapes(),
    precision=st.sampled_from(list(PRECISIONS)),
    cache=CACHE,
    lengths=BATCH,
)
def test_latent_layers_and_experts_of_any_shape_and_batch(
    variant: str,
    shape: dict[str, Any],
    precision: str,
    cache: torch.dtype,
    lengths: list[tuple[int, int]],
) -> None:
    model = latent.make_model(**shape)
    with using(variant):
        check(model, "fp32", torch.float32, lengths)
        check(model, precision, cache, lengths)
