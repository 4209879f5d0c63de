"""What mull exports as GGUF, llama.cpp computes and mull reads back: the same weights and shape."""

import ctypes
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from text_oracles import lib_path
from weights_examples import (
    DEEPSEEK_YARN,
    GQA,
    LLAMA3_ROPE,
    MLA,
    TINY,
    YARN,
    LlamaModel,
    folder_files,
    gguf_files,
    llama_cpp_logits,
    our_logits,
    random_ids,
    random_model,
    saved_folder,
)

from mull.errors import WeightsError
from mull.model import CausalLM, ModelConfig
from mull.weights import export_gguf, load_config, load_model, save_folder, save_gguf
from mull.weights.gguf_file import GgufFile


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products are slower on two threads, by far where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# llama.cpp scores V2's expert groups as V3's (the sum of the two best; V2 was trained with the
# best alone), so it is no oracle for that routing.
LLAMA_CPP_AGREES = [name for name in TINY if name != "deepseek_v2_grouped"]
# Only the order of additions differs; logits span about +-5.
SAME = 1e-4

V2 = {**MLA, "model_type": "deepseek_v2", "rope_interleave": True}
V3 = {**MLA, "model_type": "deepseek_v3", "n_group": 4, "topk_group": 2}
# What real models do not combine, but the formats can say.
UNUSUAL: dict[str, dict[str, Any]] = {
    "v2 without experts": {**V2, "n_routed_experts": 0, "first_k_dense_replace": 0},
    "v2 with normalised gates": {**V2, "norm_topk_prob": True, "routed_scaling_factor": 2.0},
    "v2 with a sigmoid": {**V2, "scoring_func": "sigmoid"},
    "v3 with a softmax": {**V3, "scoring_func": "softmax"},
    "v3 tied, no q latent": {**V3, "tie_word_embeddings": True, "q_lora_rank": None},
    "v3, one group": {**V3, "n_group": 1, "topk_group": 1},
    "v3, every layer routed": {**V3, "first_k_dense_replace": 0, "n_shared_experts": 3},
    "v3, roped heads in halves": {**V3, "rope_interleave": False},
    "v3, roped heads in halves, no q latent": {
        **V3,
        "rope_interleave": False,
        "q_lora_rank": None,
    },
    "v3, two mscales": {
        **V3,
        "rope_scaling": {**DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    },
    "v3, yarn without mscale": {**V3, "rope_scaling": YARN},
    "v3, yarn by hand": {**V3, "rope_scaling": {**DEEPSEEK_YARN, "attention_factor": 1.3}},
    "llama yarn": {**GQA, "model_type": "llama", "rope_scaling": YARN},
    "qwen3 yarn by hand": {
        **GQA,
        "model_type": "qwen3",
        "rope_scaling": {**YARN, "attention_factor": 1.3},
    },
    "llama3, another ramp": {
        **GQA,
        "model_type": "llama",
        "rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 2.0, "factor": 32.0},
    },
}


def our_model(values: dict[str, Any], *, mtp: bool = False) -> CausalLM:
    """A model of ours with every tensor random, routes and norms far from trivial."""
    # The norms of DeepSeek's latents have an epsilon of their own, llama.cpp has one for all.
    config = ModelConfig.from_dict({**values, "rms_norm_eps": 1e-6})
    model = CausalLM(config, mtp=mtp).eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                tensor.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=draw)
            else:
                scale = 1.0 if "embed" in name else 1.2 / tensor.shape[-1] ** 0.5
                tensor.normal_(0.0, scale, generator=draw)
    return model


def tiny_folder(tmp_path: Path, name: str, **changes: Any) -> Path:
    model = random_model(name, rms_norm_eps=1e-6, **changes)
    return saved_folder(model, tmp_path / "hf")


@pytest.mark.parametrize("name", TINY)
def test_a_float32_export_reads_back_as_the_same_weights_and_configuration(
    tmp_path: Path, name: str
) -> None:
    folder = tiny_folder(tmp_path, name)
    export_gguf(folder_files(folder), tmp_path / "model.gguf", type="f32")
    wanted = load_model(folder_files(folder), dtype=torch.float32)
    read = load_model(gguf_files(tmp_path / "model.gguf"), dtype=torch.float32)
    assert read.state_dict().keys() == wanted.state_dict().keys()
    for key, tensor in wanted.state_dict().items():
        torch.testing.assert_close(read.state_dict()[key], tensor, rtol=0, atol=0)
    # Not in such a file: it has no tokenizer and no MTP modules.
    same = {"bos_token_id": None, "eos_token_ids": (), "num_nextn_predict_layers": 0}
    assert replace(read.config, **same) == replace(load_config(folder_files(folder)), **same)


@pytest.mark.parametrize("name", LLAMA_CPP_AGREES)
def test_llama_cpp_gives_our_logits_and_our_100_greedy_tokens(tmp_path: Path, name: str) -> None:
    folder = tiny_folder(tmp_path, name)
    export_gguf(folder_files(folder), tmp_path / "model.gguf", type="f32")
    ours = load_model(folder_files(folder), dtype=torch.float32)
    ids = random_ids(300)
    theirs = llama_cpp_logits(tmp_path / "model.gguf", ids)
    assert (our_logits(ours, ids) - theirs).abs().max() < SAME
    llama = LlamaModel(tmp_path / "model.gguf")
    generated = llama.greedy(ids[:10], 100)
    llama.close()
    # Given llama.cpp's tokens so far, ours picks the same next one at every step: by induction
    # our own 100 greedy tokens are these.
    picks = our_logits(ours, [*ids[:10], *generated[:-1]]).argmax(-1).tolist()
    assert picks[9:] == generated


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_shapes_give_our_logits_in_llama_cpp_and_when_read_back(
    tmp_path: Path, name: str
) -> None:
    model = our_model(UNUSUAL[name])
    save_gguf(model, tmp_path / "model.gguf", type="f32")
    ids = random_ids(300)
    ours = our_logits(model, ids)
    read = load_model(gguf_files(tmp_path / "model.gguf"), dtype=torch.float32)
    assert (our_logits(read, ids) - ours).abs().max() < 1e-5
    assert (llama_cpp_logits(tmp_path / "model.gguf", ids) - ours).abs().max() < SAME


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "qwen3", "attention_bias": True}, "biases in its attention"),
        ({**V2, "mlp_bias": True}, "biases in its MLP"),
        ({**V3, "moe_layer_freq": 2}, "moe_layer_freq"),
        ({**V3, "n_shared_experts": 0}, "no shared one"),
        ({**V3, "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear rope scaling"),
        ({"model_type": "qwen2", "rope_scaling": LLAMA3_ROPE}, "llama3's rope scaling"),
        ({"model_type": "llama", "rope_scaling": {**YARN, "truncate": False}}, "truncate"),
        ({"model_type": "llama", "rope_scaling": {**YARN, "beta_fast": 16.0}}, "betas"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    model = our_model({**GQA, **changes})
    with pytest.raises(WeightsError, match=said) as caught:
        save_gguf(model, tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)
    assert "--format hf" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def _raw(file: GgufFile, name: str) -> bytes:
    tensor = file.tensors[name]
    return file._map[tensor.offset : tensor.offset + tensor.nbytes]


def _quantised_by_ggml(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> bytes:
    """float32 [rows, columns] as ggml's reference quantiser packs them."""
    quantise = ctypes.CDLL(str(lib_path)).ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    rows, columns = values.shape
    sizes = [ctypes.c_int64(number) for number in (0, rows, columns)]
    target = ctypes.create_string_buffer(values.nbytes)
    source = values.ctypes.data_as(ctypes.c_void_p)
    size = quantise(ctypes.c_int(kind), source, target, *sizes, None)
    return target.raw[:size]


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_bytes_are_those_of_ggmls_own_quantiser(tmp_path: Path, kind: str) -> None:
    # bfloat16 weights often have two largest values of opposite sign in a block.
    model = our_model(V3).bfloat16()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:, :32] = 0.0
    save_gguf(model, tmp_path / "f32.gguf", type="f32")
    save_gguf(model, tmp_path / "ours.gguf", type=kind)
    original, ours = GgufFile(tmp_path / "f32.gguf"), GgufFile(tmp_path / "ours.gguf")
    seen = set()
    for name, tensor in ours.tensors.items():
        values = original.rows(original.tensors[name], 0, tensor.rows)
        seen.add(tensor.type.name)
        if tensor.type is gguf.GGMLQuantizationType.F32:
            assert _raw(ours, name) == _raw(original, name), name
        else:
            assert _raw(ours, name) == _quantised_by_ggml(values, tensor.type), name
    assert kind.upper() in seen


def test_the_head_of_a_4_bit_file_is_as_good_as_ggmls(tmp_path: Path) -> None:
    model = our_model({**GQA, "model_type": "llama", "hidden_size": 512})
    save_gguf(model, tmp_path / "model.gguf", type="q4_0")
    file = GgufFile(tmp_path / "model.gguf")
    head = file.tensors["output.weight"]
    assert head.type is gguf.GGMLQuantizationType.Q6_K
    values = model.lm_head.weight.detach().numpy()
    raw = np.frombuffer(_quantised_by_ggml(values, head.type), np.uint8)
    theirs = gguf.quants.dequantize(raw.reshape(head.rows, -1), head.type)
    errors = [np.square(each - values).mean() for each in (file.rows(head, 0, head.rows), theirs)]
    # The search for scales adds up in another order: as good, not the same bits.
    assert errors[0] <= 1.001 * errors[1]


@pytest.mark.parametrize(
    ("kind", "is_tied", "hidden", "wanted"),
    [
        ("q8_0", False, 64, {"token_embd": "Q8_0", "output": "Q8_0"}),
        ("q4_0", False, 256, {"token_embd": "Q4_0", "output": "Q6_K"}),
        ("q4_0", False, 64, {"token_embd": "Q4_0", "output": "Q8_0"}),
        ("q4_0", True, 256, {"token_embd": "Q6_K"}),
        ("q4_0", True, 64, {"token_embd": "Q8_0"}),
        ("q4_0", True, 48, {"token_embd": "F16", "blk.1.attn_q": "F16"}),
        ("f16", True, 64, {"token_embd": "F16", "blk.1.ffn_up": "F16"}),
    ],
)
def test_types_are_those_llama_cpps_quantiser_chooses(
    tmp_path: Path, kind: str, is_tied: bool, hidden: int, wanted: dict[str, str]
) -> None:
    values = {**GQA, "model_type": "qwen2", "hidden_size": hidden, "tie_word_embeddings": is_tied}
    save_gguf(our_model(values), tmp_path / "model.gguf", type=kind)
    tensors = GgufFile(tmp_path / "model.gguf").tensors
    wanted = {"blk.0.attn_norm": "F32", "output_norm": "F32", **wanted}
    assert {name: tensors[f"{name}.weight"].type.name for name in wanted} == wanted
    assert tensors["blk.0.attn_q.bias"].type.name == "F32"


def test_routers_stay_float32_and_the_rest_of_an_expert_layer_does_not(tmp_path: Path) -> None:
    save_gguf(our_model(V3), tmp_path / "model.gguf", type="q4_0")
    tensors = GgufFile(tmp_path / "model.gguf").tensors
    types = {name.split(".", 2)[2]: t.type.name for name, t in tensors.items() if "blk.2" in name}
    assert {name for name, kind in types.items() if kind == "F32"} == {
        *(f"{part}_norm.weight" for part in ("attn", "attn_q_a", "attn_kv_a", "ffn")),
        "ffn_gate_inp.weight",
        "exp_probs_b.bias",
    }
    assert types["attn_k_b.weight"] == types["attn_v_b.weight"] == "Q4_0"
    assert tensors["blk.2.attn_k_b.weight"].shape == (4, 32, 32)
    assert tensors["blk.2.ffn_up_exps.weight"].shape == (8, 32, 64)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_rows_that_are_no_multiple_of_a_block_are_float16(tmp_path: Path, kind: str) -> None:
    folder = tiny_folder(tmp_path, "llama", intermediate_size=80)
    export_gguf(folder_files(folder), tmp_path / "model.gguf", type=kind)
    tensors = GgufFile(tmp_path / "model.gguf").tensors
    assert tensors["blk.0.ffn_down.weight"].type is gguf.GGMLQuantizationType.F16
    assert tensors["blk.0.ffn_up.weight"].type.name == kind.upper()
    ids = random_ids(50)
    ours = our_logits(load_model(gguf_files(tmp_path / "model.gguf"), dtype=torch.float32), ids)
    # llama.cpp quantises activations too.
    assert (ours - llama_cpp_logits(tmp_path / "model.gguf", ids)).abs().max() < 0.2


def test_a_model_in_memory_and_its_folder_give_the_same_file(tmp_path: Path) -> None:
    model = our_model(V3)
    save_folder(model, tmp_path / "hf", dtype=torch.float32)
    save_gguf(model, tmp_path / "memory.gguf", type="q8_0")
    export_gguf(folder_files(tmp_path / "hf"), tmp_path / "files.gguf", type="q8_0")
    memory, files = GgufFile(tmp_path / "memory.gguf"), GgufFile(tmp_path / "files.gguf")
    assert files.metadata.pop("general.name") == "hf"
    assert memory.metadata == files.metadata
    assert {n: _raw(memory, n) for n in memory.tensors} == {
        n: _raw(files, n) for n in files.tensors
    }


def test_a_gguf_file_exports_to_itself(tmp_path: Path) -> None:
    save_gguf(our_model(V3), tmp_path / "one.gguf", type="q8_0")
    export_gguf(gguf_files(tmp_path / "one.gguf"), tmp_path / "two.gguf", type="q8_0")
    one, two = GgufFile(tmp_path / "one.gguf"), GgufFile(tmp_path / "two.gguf")
    assert {n: _raw(one, n) for n in one.tensors} == {n: _raw(two, n) for n in two.tensors}


def test_multi_token_prediction_is_left_out(tmp_path: Path) -> None:
    model = our_model({**V3, "num_nextn_predict_layers": 1}, mtp=True)
    save_gguf(model, tmp_path / "memory.gguf", type="f32")
    save_folder(model, tmp_path / "hf")
    export_gguf(folder_files(tmp_path / "hf"), tmp_path / "files.gguf", type="f32")
    ids = random_ids(20)
    ours = our_logits(model, ids)
    for name in ("memory", "files"):
        theirs = llama_cpp_logits(tmp_path / f"{name}.gguf", ids)
        assert (ours - theirs).abs().max() < SAME
        tensors = GgufFile(tmp_path / f"{name}.gguf").tensors
        assert "blk.2.ffn_norm.weight" in tensors
        assert not any(tensor.startswith("blk.3.") for tensor in tensors)


def test_fp8_blocks_that_span_heads_are_read_whole(tmp_path: Path) -> None:
    # 128 rows share a scale, a head of kv_b_proj has 48: neither divides the other.
    values = {**V3, "kv_lora_rank": 64, "v_head_dim": 16, "num_attention_heads": 8}
    save_folder(our_model({**values, "num_key_value_heads": 8}), tmp_path / "hf", fp8_blocks=True)
    export_gguf(folder_files(tmp_path / "hf"), tmp_path / "model.gguf", type="f32")
    wanted = load_model(folder_files(tmp_path / "hf"), dtype=torch.float32).state_dict()
    read = load_model(gguf_files(tmp_path / "model.gguf"), dtype=torch.float32).state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(read[name], tensor, rtol=0, atol=0)


def test_a_large_tensor_passes_through_a_few_rows_at_a_time(tmp_path: Path) -> None:
    model = our_model({**GQA, "model_type": "llama", "vocab_size": 40_000})
    seen = [0]
    totals = set()

    def progress(done: int, total: int) -> None:
        seen.append(done)
        totals.add(total)

    save_gguf(model, tmp_path / "model.gguf", type="f32", progress=progress)
    assert max(np.diff(seen)) <= 1 << 20
    assert totals == {seen[-1]}
    assert 0 < (tmp_path / "model.gguf").stat().st_size - seen[-1] < 10_000


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("precious")
    with pytest.raises(WeightsError, match=r"model\.gguf: already exists"):
        save_gguf(our_model({**GQA, "model_type": "llama"}), tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_text() == "precious"


def test_an_unknown_type_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'q5_k' is not one of f32, f16, bf16, q8_0, q4_0"):
        save_gguf(our_model({**GQA, "model_type": "llama"}), tmp_path / "m.gguf", type="q5_k")


@pytest.mark.parametrize(("kind", "value"), [("f16", 1e5), ("q8_0", 1e9), ("bf16", float("nan"))])
def test_a_value_beyond_the_type_is_refused_and_leaves_nothing_behind(
    tmp_path: Path, kind: str, value: float
) -> None:
    model = our_model({**GQA, "model_type": "llama"})
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    with pytest.raises(WeightsError, match=rf"blk\.1\.ffn_up\.weight .* {kind.upper()} cannot"):
        save_gguf(model, tmp_path / "out" / "model.gguf", type=kind)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    model = our_model({**GQA, "model_type": "llama"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(WeightsError, match=r"gguf: could not be written: File too large"):
            save_gguf(model, tmp_path / "out" / "model.gguf", type="f32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "out").iterdir()) == []
