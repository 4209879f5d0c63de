"""Native latent attention and experts against the plain torch model: same logits, cached or not."""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_variants import VARIANTS, using, without_native
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mull.engine.cache import PagedCache
from mull.engine.fused_latent import FusedLatentLayers
from mull.engine.paged import PagedSequences
from mull.engine.prepare import prepare
from mull.engine.scheduler import Chunk
from mull.errors import KernelError
from mull.kernels import PackedLinear
from mull.kernels.reference import quantised_activations
from mull.model.config import ModelConfig
from mull.model.sequences import PackedSequences
from mull.model.transformer import CausalLM

CPU = torch.device("cpu")
VOCABULARY = 131
SHAPE: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "q_lora_rank": 32,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "tie_word_embeddings": False,
}
# No width is a multiple of what the kernels work in.
ODD = {
    "hidden_size": 44,
    "intermediate_size": 70,
    "q_lora_rank": 23,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 9,
    "qk_rope_head_dim": 6,
    "v_head_dim": 20,
    "moe_intermediate_size": 21,
}
V2 = {"model_type": "deepseek_v2", "q_lora_rank": None, "n_group": 1, "topk_group": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "v3": {},
    "v3, odd widths, biases": {**ODD, "attention_bias": True},
    "v3, half rotation": {"rope_interleave": False},
    "v3, yarn": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        }
    },
    "v2": {**V2, "topk_method": "greedy", "n_shared_experts": 2, "mlp_bias": True},
    "v2, grouped": {**V2, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    "v2, odd widths, biases": {**ODD, **V2, "attention_bias": True, "q_lora_rank": None},
    "no shared expert": {"n_shared_experts": 0, "norm_topk_prob": False},
    "one choice": {"num_experts_per_tok": 1},
    "dense": {"n_routed_experts": 0, "tie_word_embeddings": True},
}


def make_model(*, mtp: bool = False, **family: Any) -> CausalLM:
    torch.manual_seed(1)
    model = CausalLM(ModelConfig.from_dict({**SHAPE, **family}), mtp=mtp)
    model.init_weights()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor += 0.1 * torch.randn_like(tensor)
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


def fused_layers(model: CausalLM) -> FusedLatentLayers:
    layers = model.model.layers[0]
    assert isinstance(layers, FusedLatentLayers)
    return layers


def weights_of(linear: PackedLinear) -> Tensor:
    """[N, K] float32, as the packed bytes stand for them."""
    return linear.rows(torch.arange(linear.out_features))


@torch.no_grad()
def with_weights_of(fused: CausalLM, model: CausalLM) -> CausalLM:
    """`model` with the weights that the fused layers have after packing."""
    packed_head, embedding = fused.lm_head, fused.model.embed_tokens
    assert isinstance(packed_head, PackedLinear)
    model.lm_head.weight.copy_(weights_of(packed_head))
    model.model.embed_tokens.weight.copy_(embedding(torch.arange(VOCABULARY)))
    for plain, layer in zip(model.model.layers, fused_layers(fused).layers, strict=True):
        attention = plain.self_attn
        entry = weights_of(layer.entry)
        attention.q_a_proj.weight.copy_(entry[: attention.q_a_proj.out_features])
        attention.kv_a_proj_with_mqa.weight.copy_(entry[attention.q_a_proj.out_features :])
        attention.q_b_proj.weight.copy_(weights_of(layer.q))
        up_HKn = weights_of(layer.up_key).unflatten(0, (attention.heads, -1))
        up_HvK = weights_of(layer.up_value).unflatten(0, (attention.heads, -1))
        up_HxK = torch.cat((up_HKn.transpose(1, 2), up_HvK), dim=1)
        attention.kv_b_proj.weight.copy_(up_HxK.flatten(0, 1))
        attention.o_proj.weight.copy_(weights_of(layer.out))
        dense = plain.mlp
        if layer.router is not None:
            dense = plain.mlp.shared_experts
            experts = plain.mlp.experts
            gate_up, down = experts.gate_up_proj, experts.down_proj
            gate_up.copy_(weights_of(layer.expert_gate_up).view_as(gate_up))
            down.copy_(weights_of(layer.expert_down).view_as(down))
        for name in ("gate", "up", "down"):
            dense.get_submodule(f"{name}_proj").weight.copy_(weights_of(getattr(layer, name)))
    return model


class QuantisedActivations(TorchFunctionMode):
    """Every product of a plain model, but the router's, with activations of 8 bits per group."""

    def __init__(self, routers: list[Tensor]) -> None:
        super().__init__()
        self._routers = {router.data_ptr() for router in routers}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[1].data_ptr() not in self._routers:
            args = (quantised_activations(args[0]), *args[1:])
        elif func is torch.mm:  # of an expert
            args = (quantised_activations(args[0]), args[1])
        elif func is torch.einsum:
            args = (args[0], quantised_activations(args[1]), args[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_models_logits_come_out_without_a_cache(family: str) -> None:
    model, ids = make_model(**FAMILIES[family]), make_ids(75)
    expected = plain_logits(model, ids, [50, 1, 24])
    fused = prepare(copy.deepcopy(model), precision="fp32", device=CPU)
    assert fused_layers(fused)
    got = plain_logits(fused, ids, [50, 1, 24])
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_models_logits_come_out_of_the_cache(family: str, variant: str) -> None:
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
            torch.testing.assert_close(got, expected[wanted], rtol=0, atol=5e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("bf16", torch.int8),
        ("q8", torch.bfloat16),
        ("q4", torch.int8),
    ],
)
@pytest.mark.parametrize("family", ["v3", "v2, odd widths, biases"])
def test_a_sequence_has_the_same_bits_alone_in_chunks_and_beside_others(
    family: str, precision: str, dtype: torch.dtype, variant: str
) -> None:
    model = prepare(make_model(**FAMILIES[family]), precision=precision, device=CPU)
    ids = make_ids(140).tolist()
    mine, other = Cached(ids[:40], [5, 2, 8]), Cached(ids[40:], [1, 0, 3, 4, 6, 7, 9])
    with using(variant):
        alone = paged_logits(model, make_cache(model, dtype), [Chunk(mine, 0, 40)])
        cache = make_cache(model, dtype)
        together = [
            paged_logits(model, cache, [Chunk(other, 0, 90), Chunk(mine, 0, 17)])[90:],
            paged_logits(model, cache, [Chunk(mine, 17, 22), Chunk(other, 90, 1)])[:22],
            paged_logits(model, cache, [Chunk(other, 91, 1), Chunk(mine, 39, 1)])[1:],
        ]
        assert torch.equal(torch.cat(together), alone)
        cache = make_cache(model, dtype)
        paged_logits(model, cache, [Chunk(mine, 0, 39)])
        assert torch.equal(paged_logits(model, cache, [Chunk(mine, 39, 1)]), alone[-1:])


def force_experts(model: CausalLM, favoured: list[int]) -> None:
    """Selection biases under which every token chooses `favoured`, a whole number of groups."""
    for layer in model.model.layers[1:]:
        layer.mlp.gate.e_score_correction_bias.fill_(-100.0)
        layer.mlp.gate.e_score_correction_bias[favoured] = 100.0


@pytest.mark.parametrize("rows", [1, 2, 33, 150])
def test_all_tokens_at_the_same_experts_and_none_at_the_others(rows: int) -> None:
    model, ids = make_model(num_experts_per_tok=4), make_ids(rows)
    force_experts(model, [2, 3, 6, 7])
    expected = plain_logits(model, ids, [rows])
    fused = prepare(model, precision="fp32", device=CPU)
    torch.testing.assert_close(plain_logits(fused, ids, [rows]), expected, rtol=0, atol=5e-5)


def test_more_rows_than_the_threads_own_buffers_hold_at_once() -> None:
    model, ids = make_model(max_position_embeddings=4096), make_ids(1500)
    expected = plain_logits(model, ids, [1000, 500])
    fused = prepare(model, precision="fp32", device=CPU)
    got = plain_logits(fused, ids, [1000, 500])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "q8"])
def test_queries_may_pass_through_a_rank_wider_than_all_else(precision: str) -> None:
    model, ids = make_model(q_lora_rank=40_000, num_hidden_layers=1), make_ids(5)
    expected = plain_logits(model, ids, [5])
    got = plain_logits(prepare(model, precision=precision, device=CPU), ids, [5])
    assert (got - expected).norm() < {"fp32": 1e-5, "q8": 4e-2}[precision] * expected.norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("precision", "nearest", "farthest"), [("bf16", 1e-4, 4e-2), ("q8", 1e-3, 4e-2)]
)
def test_narrower_weights_stay_near_float32(
    precision: str, nearest: float, farthest: float, family: str
) -> None:
    model, ids = make_model(**FAMILIES[family]), make_ids(64)
    expected = plain_logits(model, ids, [64])
    fused = prepare(model, precision=precision, device=CPU)
    sequence = Cached(ids.tolist(), [3, 1, 2, 0])
    got = paged_logits(fused, make_cache(model, torch.bfloat16), [Chunk(sequence, 0, 64)])
    # A token near the border between two experts may go to the other one.
    relative = ((got - expected).norm(dim=-1) / expected.norm(dim=-1)).median()
    assert nearest < relative < farthest


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", ["q8", "q4"])
def test_quantised_layers_compute_what_the_reference_arithmetic_does(
    precision: str, variant: str
) -> None:
    model, ids, lengths = make_model(), make_ids(75), [3] * 25
    fused = prepare(copy.deepcopy(model), precision=precision, device=CPU)
    plain = with_weights_of(fused, model)
    routers = [layer.mlp.gate.weight for layer in plain.model.layers[1:]]
    with torch.no_grad(), QuantisedActivations(routers):
        seqs = PackedSequences(lengths, absorb=True)
        expected = plain.logits(plain(ids, seqs))
    with using(variant):
        got = plain_logits(fused, ids, lengths)
    # An activation on the border between two whole numbers may fall to either side, and then every
    # later token of its sequence sees it: hence many short sequences, and the median.
    relative = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert relative.median() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16", "q4"])
def test_next_token_modules_predict_what_the_plain_ones_do(precision: str) -> None:
    model, ids = make_model(mtp=True, num_nextn_predict_layers=2), make_ids(31)

    def predicted(model: CausalLM) -> Tensor:
        seqs = PackedSequences([29])
        first = model.mtp_hidden(model(ids[:29], seqs), ids[1:30], seqs)
        return model.logits(model.mtp_hidden(first, ids[2:31], seqs, depth=1))

    expected = predicted(model)
    got = predicted(prepare(model, precision=precision, device=CPU))
    relative = ((got - expected).norm(dim=-1) / expected.norm(dim=-1)).median()
    assert relative < {"fp32": 1e-5, "bf16": 4e-2, "q4": 0.3}[precision]


def test_logits_from_an_int8_cache_stay_near_those_without_a_cache() -> None:
    model, ids = make_model(**FAMILIES["v3"]), make_ids(64)
    expected = plain_logits(model, ids, [64])
    fused = prepare(model, precision="fp32", device=CPU)
    chunks = [Chunk(Cached(ids.tolist(), [3, 1, 2, 0]), 0, 64)]
    got = paged_logits(fused, make_cache(fused, torch.int8), chunks)
    # Here and there another expert is chosen, which changes a token's logits much more.
    relative_T = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 1e-4 < relative_T.median() < 2e-2


def test_no_original_weight_is_kept() -> None:
    model = make_model()
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    fused = prepare(model, precision="fp32", device=CPU)
    tensors = {t.data_ptr(): t.nbytes for t in (*fused.parameters(), *fused.buffers())}
    # A few panels are filled up with zeros.
    assert held <= sum(tensors.values()) < 1.02 * held
    assert not any(isinstance(module, nn.Linear) for module in fused.modules())


def test_sequences_of_an_unknown_kind_are_refused() -> None:
    model = prepare(make_model(), precision="fp32", device=CPU)

    class Foreign:
        positions_T = torch.arange(3)
        absorb = True

    with pytest.raises(KernelError, match="Foreign"):
        model(make_ids(3), Foreign())


def test_without_native_kernels_the_plain_modules_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_model(), make_ids(33)
    expected = plain_logits(model, ids, [33])
    with without_native(monkeypatch):
        plain = prepare(model, precision="fp32", device=CPU)
        assert not any(isinstance(module, FusedLatentLayers) for module in plain.modules())
        table = Cached(ids.tolist(), [3, 1, 2])
        got = paged_logits(plain, make_cache(model), [Chunk(table, 0, 33)])
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-5)
