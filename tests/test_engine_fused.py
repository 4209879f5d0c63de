"""Prepared models against the plain ones they were made from: same logits, cached or not."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from kernel_variants import VARIANTS, using, without_native
from torch import Tensor, nn

from mull.engine.cache import PagedCache
from mull.engine.fused import FusedLayers
from mull.engine.packing import bind
from mull.engine.paged import PagedSequences
from mull.engine.prepare import prepare
from mull.engine.scheduler import Chunk
from mull.errors import KernelError, RequestError
from mull.kernels import PackedLinear
from mull.model.config import ModelConfig
from mull.model.sequences import PackedSequences
from mull.model.transformer import CausalLM

CPU = torch.device("cpu")
VOCABULARY = 131
FAMILIES = {
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, biases": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
}
MLA = {
    "model_type": "deepseek_v3",
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 6,
    "tie_word_embeddings": False,
}


def make_model(**family: object) -> CausalLM:
    config = ModelConfig.from_dict(
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **family,
        }
    )
    torch.manual_seed(1)
    model = CausalLM(config)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@dataclass(eq=False)
class Cached:
    """As much of an engine's sequence as PagedSequences reads."""

    token_ids: list[int]
    block_table: list[int] = field(default_factory=list)


def make_ids(count: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def plain_logits(model: CausalLM, ids: Tensor, lengths: list[int]) -> Tensor:
    return model.logits(model(ids, PackedSequences(lengths)))


@torch.no_grad()
def paged_logits(model: CausalLM, cache: PagedCache, chunks: list[Chunk]) -> Tensor:
    seqs = PagedSequences(chunks, cache)
    return model.logits(model(seqs.ids_T, seqs))


def make_cache(model: CausalLM, dtype: torch.dtype = torch.float32) -> PagedCache:
    return PagedCache(model.config, num_blocks=16, block_size=16, dtype=dtype, device=CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_layers_give_the_plain_models_logits_without_a_cache(family: str) -> None:
    model, ids = make_model(**FAMILIES[family]), make_ids(70)
    expected = plain_logits(model, ids, [50, 20])
    fused = prepare(copy.deepcopy(model), precision="fp32", device=CPU)
    assert isinstance(fused.model.layers[0], FusedLayers)
    torch.testing.assert_close(plain_logits(fused, ids, [50, 20]), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_layers_give_the_plain_models_logits_from_the_cache(
    family: str, variant: str
) -> None:
    model, ids = make_model(**FAMILIES[family]), make_ids(70)
    expected = plain_logits(model, ids, [50, 20])
    fused = prepare(model, precision="fp32", device=CPU)
    cache = make_cache(model)
    first = Cached(ids[:50].tolist(), [3, 1, 7, 9])
    second = Cached(ids[50:].tolist(), [2, 0])
    steps = [
        ([Chunk(first, 0, 21), Chunk(second, 0, 19)], [range(21), range(50, 69)]),
        ([Chunk(second, 19, 1), Chunk(first, 21, 28)], [range(69, 70), range(21, 49)]),
        ([Chunk(first, 49, 1)], [range(49, 50)]),
    ]
    with using(variant):
        for chunks, rows in steps:
            wanted = torch.tensor([row for part in rows for row in part])
            got = paged_logits(fused, cache, chunks)
            torch.testing.assert_close(got, expected[wanted], rtol=0, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("bf16", torch.int8)],
)
def test_a_sequence_has_the_same_bits_alone_in_chunks_and_beside_others(
    precision: str, dtype: torch.dtype, variant: str
) -> None:
    family = FAMILIES["qwen3"] | {"head_dim": 12}
    model = prepare(make_model(**family), precision=precision, device=CPU)
    ids = make_ids(60).tolist()
    mine, other = Cached(ids[:40], [5, 2, 8]), Cached(ids[40:], [1, 0])
    with using(variant):
        alone = paged_logits(model, make_cache(model, dtype), [Chunk(mine, 0, 40)])
        cache = make_cache(model, dtype)
        together = [
            paged_logits(model, cache, [Chunk(other, 0, 9), Chunk(mine, 0, 17)])[9:],
            paged_logits(model, cache, [Chunk(mine, 17, 22), Chunk(other, 9, 1)])[:22],
            paged_logits(model, cache, [Chunk(other, 10, 1), Chunk(mine, 39, 1)])[1:],
        ]
    assert torch.equal(torch.cat(together), alone)


def test_bf16_logits_stay_near_those_of_fp32() -> None:
    model, ids = make_model(**FAMILIES["qwen2"]), make_ids(64)
    expected = plain_logits(model, ids, [64])
    fused = prepare(model, precision="bf16", device=CPU)
    got = paged_logits(
        fused, make_cache(model, torch.bfloat16), [Chunk(Cached(ids.tolist(), [3, 1, 2, 0]), 0, 64)]
    )
    assert got.dtype == torch.float32
    relative = (got - expected).norm() / expected.norm()
    assert 1e-4 < relative < 2e-2


def test_logits_from_an_int8_cache_stay_near_those_without_a_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family, ids = FAMILIES["qwen2"] | {"head_dim": 12}, make_ids(64)
    expected = plain_logits(make_model(**family), ids, [64])
    chunks = [Chunk(Cached(ids.tolist(), [3, 1, 2, 0]), 0, 64)]
    fused = prepare(make_model(**family), precision="fp32", device=CPU)
    got = paged_logits(fused, make_cache(fused, torch.int8), chunks)
    assert 1e-4 < (got - expected).norm() / expected.norm() < 2e-2
    with without_native(monkeypatch):
        plain = make_model(**family)
        alike = paged_logits(plain, make_cache(plain, torch.int8), chunks)
    assert (alike - got).norm() < 5e-3 * expected.norm()


def test_a_copied_block_of_an_int8_cache_continues_like_the_original() -> None:
    model = prepare(
        make_model(**FAMILIES["llama, tied"] | {"head_dim": 12}), precision="fp32", device=CPU
    )
    cache, ids = make_cache(model, torch.int8), make_ids(30).tolist()
    original, fork = Cached(ids, [5, 2]), Cached(ids, [5, 9])
    paged_logits(model, cache, [Chunk(original, 0, 25)])
    cache.copy_blocks([(2, 9)])
    expected = paged_logits(model, cache, [Chunk(original, 25, 5)])
    assert torch.equal(paged_logits(model, cache, [Chunk(fork, 25, 5)]), expected)


@pytest.mark.parametrize(
    ("family", "block_size", "problem"),
    [
        (FAMILIES["qwen2"], 16, "multiple of 4"),
        (FAMILIES["qwen2"] | {"head_dim": 12}, 24, "multiple of 16"),
        (MLA, 8, "multiple of 16"),
    ],
)
def test_an_int8_cache_says_which_shapes_it_does_not_hold(
    family: dict[str, object], block_size: int, problem: str
) -> None:
    config = make_model(**family).config
    with pytest.raises(RequestError, match=problem):
        PagedCache(config, num_blocks=4, block_size=block_size, dtype=torch.int8, device=CPU)


def test_tied_embeddings_are_held_once() -> None:
    model = prepare(make_model(**FAMILIES["llama, tied"]), precision="bf16", device=CPU)
    assert isinstance(model.lm_head, PackedLinear)
    holders = [b for b in model.buffers() if b.nbytes >= VOCABULARY * 48 * 2]
    assert len(holders) == 1
    assert holders[0] is model.lm_head.packed


def test_without_native_kernels_only_the_precision_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_model(**FAMILIES["llama, tied"]), make_ids(33)
    expected = plain_logits(model, ids, [33])
    native = prepare(copy.deepcopy(model), precision="fp32", device=CPU)
    with without_native(monkeypatch):
        plain = prepare(model, precision="fp32", device=CPU)
        assert not any(isinstance(m, (PackedLinear, FusedLayers)) for m in plain.modules())
        table = Cached(ids.tolist(), [3, 1, 2])
        got = paged_logits(plain, make_cache(model), [Chunk(table, 0, 33)])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(plain_logits(native, ids, [33]), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", [FAMILIES["llama, biases"], MLA], ids=["llama", "mla"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_skeleton_filled_with_the_tensors_of_a_prepared_model_is_that_model(
    family: dict[str, object], precision: str
) -> None:
    real = make_model(**family)
    packed = prepare(copy.deepcopy(real), precision=precision, device=CPU)
    with torch.device("meta"):
        skeleton = CausalLM(real.config)
    skeleton = prepare(skeleton, precision=precision, device=CPU)
    wanted = packed.state_dict()
    empty = skeleton.state_dict()
    assert {n: (t.shape, t.dtype) for n, t in empty.items()} == {
        n: (t.shape, t.dtype) for n, t in wanted.items()
    }
    assert all(tensor.is_meta for tensor in empty.values())
    with pytest.raises(KernelError, match="filled"):
        plain_logits(skeleton, make_ids(5), [5])
    skeleton.load_state_dict({n: t.clone() for n, t in wanted.items()}, assign=True)
    bind(skeleton)
    ids = make_ids(20)
    assert torch.equal(plain_logits(skeleton, ids, [20]), plain_logits(packed, ids, [20]))


def test_a_model_packed_while_its_modules_are_filled_is_the_model_packed_whole() -> None:
    real = make_model(**FAMILIES["qwen3"])
    named = dict(real.named_parameters())
    with torch.device("meta"):
        lazy = CausalLM(real.config)
    names = {id(parameter): name for name, parameter in lazy.named_parameters()}

    def fill(module: nn.Module) -> None:
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            weight = named[names[id(parameter)]].detach().clone()
            setattr(module, leaf, nn.Parameter(weight, requires_grad=False))

    packed = prepare(lazy, precision="bf16", device=CPU, fill=fill)
    whole = prepare(real, precision="bf16", device=CPU)
    ids = make_ids(20)
    assert torch.equal(plain_logits(packed, ids, [20]), plain_logits(whole, ids, [20]))


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(RequestError, match="'int3'"):
        prepare(make_model(**FAMILIES["qwen2"]), precision="int3", device=CPU)
