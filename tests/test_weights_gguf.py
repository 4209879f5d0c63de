"""GGUF against transformers' logits of the same weights, and against llama.cpp on the same file."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from weights_examples import (
    LLAMA3_ROPE,
    Q8,
    TINY,
    folder_files,
    gguf_files,
    llama_cpp_logits,
    oracle_logits,
    our_logits,
    random_ids,
    random_model,
    write_gguf,
)

import mull
from mull.errors import WeightsError
from mull.weights import load_config, load_model, tokenizer_source
from mull.weights.gguf_file import READABLE_TYPES, GgufFile


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products are slower on two threads, by far where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


LAYOUTS = [
    (name, split) for name in TINY for split in ((True, False) if "deepseek" in name else (True,))
]
# llama.cpp scores V2's expert groups as V3's (the sum of the two best; V2 was trained with the
# best alone), so it is no oracle for that routing.
LLAMA_CPP_AGREES = [(name, split) for name, split in LAYOUTS if name != "deepseek_v2_grouped"]


@pytest.mark.parametrize(("name", "split_mla"), LAYOUTS)
def test_a_gguf_gives_transformers_logits(tmp_path: Path, name: str, split_mla: bool) -> None:
    model = random_model(name)
    path = write_gguf(model, tmp_path / "model.gguf", split_mla=split_mla)
    ids = random_ids(200)
    ours = our_logits(load_model(gguf_files(path), dtype=torch.float32), ids)
    assert (ours - oracle_logits(model, ids)).abs().max() < 1e-4


@pytest.mark.parametrize(("name", "split_mla"), LLAMA_CPP_AGREES)
def test_llama_cpp_reads_the_same_model_from_the_file(
    tmp_path: Path, name: str, split_mla: bool
) -> None:
    path = write_gguf(random_model(name), tmp_path / "model.gguf", split_mla=split_mla)
    ids = random_ids(200)
    ours = our_logits(load_model(gguf_files(path), dtype=torch.float32), ids)
    theirs = llama_cpp_logits(path, ids)
    # llama.cpp rounds activations to float16 here and there; logits span about +-2.5.
    assert (ours - theirs).abs().max() < 5e-3


@pytest.mark.parametrize("name", TINY)
def test_metadata_gives_back_the_configuration_it_was_made_of(tmp_path: Path, name: str) -> None:
    path = write_gguf(random_model(name), tmp_path / "model.gguf")
    read = load_config(gguf_files(path))
    wanted = load_config(folder_files(tmp_path / "model_hf"))
    # Not kept in such a file: it has no tokenizer, no MTP layers, and nothing about training.
    same = {"dtype": "float32", "bos_token_id": None, "eos_token_ids": (), "initializer_range": 0}
    same["num_nextn_predict_layers"] = 0
    assert replace(read, **same) == replace(wanted, **same)


def _fuse_gate_and_up(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if "ffn_gate_exps" in name]:
        halves = (tensors.pop(name), tensors.pop(name.replace("gate", "up")))
        tensors[name.replace("gate", "gate_up")] = np.concatenate(halves, axis=1)


def _fold_heads(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if "attn_k_b" in name or "attn_v_b" in name]:
        tensors[name] = tensors[name].reshape(-1, tensors[name].shape[-1])


def _both_mla_layouts(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if "attn_k_b" in name]:
        keys = tensors[name].transpose(0, 2, 1)
        both = np.concatenate((keys, tensors[name.replace("k_b", "v_b")]), axis=1)
        tensors[name.replace("k_b", "kv_b")] = both.reshape(-1, both.shape[-1])


def _early_bias_name(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if "exp_probs_b" in name]:
        tensors[name.replace(".bias", ".weight")] = tensors.pop(name)


def _precomputed_tables(tensors: dict[str, np.ndarray]) -> None:
    tensors["blk.0.attn_rot_embd.weight"] = np.ones(8, np.float32)


@pytest.mark.parametrize(
    "change",
    [_fuse_gate_and_up, _fold_heads, _both_mla_layouts, _early_bias_name, _precomputed_tables],
)
def test_layouts_that_files_came_in_over_time_are_the_same_model(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None]
) -> None:
    model = random_model("deepseek_v3")
    path = write_gguf(model, tmp_path / "model.gguf", change=change)
    ids = random_ids(50)
    ours = our_logits(load_model(gguf_files(path), dtype=torch.float32), ids)
    assert (ours - oracle_logits(model, ids)).abs().max() < 1e-4


WRONG_TENSORS: dict[str, tuple[str, Callable[[dict[str, np.ndarray]], object], str]] = {
    "missing": ("llama", lambda t: t.pop("blk.1.ffn_up.weight"), "layers.1.mlp.up_proj"),
    "no embedding": ("llama", lambda t: t.pop("token_embd.weight"), r"token_embd\.weight"),
    "surplus": (
        "llama",
        lambda t: t.update({"blk.0.ssm_a.weight": np.ones(4, np.float32)}),
        r"blk\.0\.ssm_a\.weight belongs to no part",
    ),
    "a layer too many": (
        "llama",
        lambda t: t.update({"blk.7.ffn_up.weight": t["blk.0.ffn_up.weight"]}),
        "layers.7.mlp.up_proj",
    ),
    "wrong shape": (
        "llama",
        lambda t: t.update({"blk.0.ffn_up.weight": t["blk.0.ffn_up.weight"][:-1]}),
        r"shape \(95, 64\).*\(96, 64\)",
    ),
    "half a rotary head": (
        "llama",
        lambda t: t.update({"blk.0.attn_q.weight": t["blk.0.attn_q.weight"][:-1]}),
        "no multiple of an even head size",
    ),
    "rope factors of another head": (
        "llama3_rope",
        lambda t: t.update({"rope_freqs.weight": np.ones(3, np.float32)}),
        r"rope_freqs\.weight has the shape",
    ),
    "rope factors of another scaling": (
        "llama3_rope",
        lambda t: t.update({"rope_freqs.weight": np.linspace(1, 9, 16, dtype=np.float32)}),
        "not llama3 scaling",
    ),
    "an expert missing": (
        "deepseek_v3",
        lambda t: t.update({"blk.1.ffn_up_exps.weight": t["blk.1.ffn_up_exps.weight"][:-1]}),
        "has 8 experts",
    ),
    "half of the split attention": (
        "deepseek_v3",
        lambda t: t.pop("blk.1.attn_v_b.weight"),
        "no attn_v_b beside it",
    ),
    "values of another size": (
        "deepseek_v3",
        lambda t: t.update({"blk.1.attn_v_b.weight": t["blk.1.attn_v_b.weight"][:, :-1]}),
        r"attn_v_b\.weight has the shape",
    ),
}


@pytest.mark.parametrize("what", WRONG_TENSORS)
def test_what_is_wrong_with_the_tensors_is_said_in_one_line(tmp_path: Path, what: str) -> None:
    name, change, said = WRONG_TENSORS[what]
    path = write_gguf(random_model(name), tmp_path / "model.gguf", change=change)
    with pytest.raises(WeightsError, match=said) as caught:
        load_model(gguf_files(path))
    assert "\n" not in str(caught.value)
    assert "model.gguf" in str(caught.value)


@pytest.mark.parametrize("high", [4.0, 2.5])
def test_llama3_scaling_of_another_context_is_read_off_the_factors(
    tmp_path: Path, high: float
) -> None:
    scaling = {**LLAMA3_ROPE, "original_max_position_embeddings": 1024, "high_freq_factor": high}
    model = random_model("llama3_rope", head_dim=64, rope_scaling=scaling)
    path = write_gguf(model, tmp_path / "model.gguf")
    read = load_config(gguf_files(path)).rope_scaling
    assert read is not None
    assert read["original_max_position_embeddings"] == 1024
    assert read["high_freq_factor"] == pytest.approx(high, abs=1e-3)
    ids = random_ids(300)
    ours = our_logits(load_model(gguf_files(path), dtype=torch.float32), ids)
    assert (ours - oracle_logits(model, ids)).abs().max() < 1e-4


def test_mtp_layers_in_a_gguf_are_skipped_or_loaded_as_asked(tmp_path: Path) -> None:
    model = random_model("deepseek_v3")
    extra = {
        "nextn.enorm": np.full(64, 2.0, np.float32),
        "nextn.hnorm": np.full(64, 3.0, np.float32),
        "nextn.shared_head_norm": np.full(64, 4.0, np.float32),
        "nextn.eh_proj": np.full((64, 128), 0.5, np.float32),
        "nextn.embed_tokens": np.zeros((160, 64), np.float32),
        "nextn.shared_head_head": np.zeros((160, 64), np.float32),
    }

    def add_layer(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.startswith("blk.2.")]:
            tensors[name.replace("blk.2.", "blk.3.")] = tensors[name] + 0.25
        tensors.update({f"blk.3.{name}.weight": array for name, array in extra.items()})

    path = write_gguf(model, tmp_path / "model.gguf", change=add_layer, mtp_layers=1)
    ids = random_ids(50)
    ours = our_logits(load_model(gguf_files(path), dtype=torch.float32), ids)
    assert (ours - oracle_logits(model, ids)).abs().max() < 1e-4
    with_it = load_model(gguf_files(path), dtype=torch.float32, mtp=True)
    assert (with_it.mtp[0].enorm.weight == 2.0).all()
    assert (with_it.mtp[0].eh_proj.weight == 0.5).all()
    last = with_it.model.layers[2].mlp.experts.down_proj
    torch.testing.assert_close(with_it.mtp[0].mlp.experts.down_proj, last + 0.25)


@pytest.mark.parametrize("quantised_type", [Q8, gguf.GGMLQuantizationType.Q4_0])
@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_a_quantised_file_is_the_model_of_its_dequantised_weights(
    tmp_path: Path, name: str, quantised_type: gguf.GGMLQuantizationType
) -> None:
    model = random_model(name)
    path = write_gguf(model, tmp_path / "model.gguf", quantise=quantised_type)
    loaded = load_model(gguf_files(path), dtype=torch.float32)
    original = model.model.layers[1].self_attn.o_proj.weight.detach().numpy()
    wanted = gguf.quants.dequantize(gguf.quants.quantize(original, quantised_type), quantised_type)
    np.testing.assert_array_equal(loaded.model.layers[1].self_attn.o_proj.weight.detach(), wanted)


@pytest.mark.parametrize("kind", sorted(READABLE_TYPES), ids=lambda kind: kind.name)
def test_rows_of_every_type_equal_the_whole_tensor_dequantised(
    tmp_path: Path, kind: gguf.GGMLQuantizationType
) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = 21, 256 * 3
    raw = np.random.default_rng(1).integers(0, 120, (rows, columns // block * size), np.uint8)
    path = tmp_path / "types.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("t", raw, raw_dtype=kind)
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    file = GgufFile(path)
    assert file.tensors["t"].shape == (rows, columns)
    with np.errstate(all="ignore"):
        whole = gguf.quants.dequantize(raw, kind)
    pieces = [file.rows(file.tensors["t"], start, min(start + 8, rows)) for start in (0, 8, 16)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole.reshape(rows, columns))


def test_a_model_in_parts_loads_from_its_first_part(tmp_path: Path) -> None:
    model = random_model("llama")
    write_gguf(model, tmp_path / "model.gguf", tensors_per_part=6)
    parts = sorted(tmp_path.glob("model-*-of-*.gguf"))
    assert len(parts) > 2
    ids = random_ids(20)
    ours = our_logits(load_model(gguf_files(parts[0]), dtype=torch.float32), ids)
    assert (ours - oracle_logits(model, ids)).abs().max() < 1e-4
    with pytest.raises(WeightsError, match="give the first"):
        load_model(gguf_files(parts[1]))
    parts[1].unlink()
    with pytest.raises(WeightsError, match=parts[1].name):
        load_model(gguf_files(parts[0]))


def test_a_model_may_be_cut_between_any_two_tensors(tmp_path: Path) -> None:
    model = random_model("deepseek_v3")
    write_gguf(model, tmp_path / "model.gguf", tensors_per_part=1)
    first = min(tmp_path.glob("model-*-of-*.gguf"))
    ids = random_ids(20)
    ours = our_logits(load_model(gguf_files(first), dtype=torch.float32), ids)
    assert (ours - oracle_logits(model, ids)).abs().max() < 1e-4


def test_version_2_reads_like_version_3_and_others_are_refused(tmp_path: Path) -> None:
    path = write_gguf(random_model("llama"), tmp_path / "model.gguf")
    good = path.read_bytes()
    path.write_bytes(good[:4] + b"\x02\0\0\0" + good[8:])
    assert load_config(gguf_files(path)).hidden_size == 64
    for version, said in ((b"\x01\0\0\0", "version 1"), (b"\0\0\0\x03", "big-endian")):
        path.write_bytes(good[:4] + version + good[8:])
        with pytest.raises(WeightsError, match=said):
            load_config(gguf_files(path))


def _written(
    path: Path, architecture: str, tensors: dict[str, np.ndarray] | None = None, **numbers: int
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in numbers.items():
        writer.add_uint32(f"{architecture}.{key.replace('__', '.')}", value)
    writer.add_layer_norm_rms_eps(1e-6)
    for name, array in {"token_embd.weight": np.zeros((8, 4)), **(tensors or {})}.items():
        writer.add_tensor(name, array.astype(np.float32))
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    return path


def test_an_unknown_architecture_is_named_with_those_that_run(tmp_path: Path) -> None:
    path = _written(tmp_path / "m.gguf", "mamba")
    with pytest.raises(WeightsError, match=r"'mamba'.*deepseek2"):
        load_config(gguf_files(path))


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    path = _written(tmp_path / "m.gguf", "llama", embedding_length=4)
    with pytest.raises(WeightsError, match=r"llama\.block_count is 'absent'"):
        load_config(gguf_files(path))


@pytest.mark.parametrize("recorded", [{"attention__key_length": 7}, {}])
def test_a_head_of_odd_size_is_refused_in_one_line(
    tmp_path: Path, recorded: dict[str, int]
) -> None:
    numbers = {"block_count": 1, "context_length": 9, "feed_forward_length": 4}
    path = _written(
        tmp_path / "m.gguf",
        "llama",
        {"rope_freqs.weight": np.full(3, 2.0)},
        embedding_length=14,
        attention__head_count=2,
        **numbers,
        **recorded,
    )
    with pytest.raises(WeightsError, match=r"attention\.key_length .* even .* 7\)") as caught:
        load_config(gguf_files(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("experts", "gating", "recorded", "wanted"),
    [
        (256, 2, None, (8, 4)),
        (160, 1, None, (8, 3)),
        (64, 1, None, (1, 1)),
        (384, 2, None, (1, 1)),
        (256, 2, (1, 1), (1, 1)),
        (160, 1, (4, 2), (4, 2)),
    ],
)
def test_routing_groups_that_old_files_do_not_record_are_the_trained_ones(
    tmp_path: Path, experts: int, gating: int, recorded: tuple[int, int] | None, wanted: object
) -> None:
    numbers = {
        "context_length": 64,
        "embedding_length": 4,
        "block_count": 1,
        "feed_forward_length": 4,
        "attention__head_count": 1,
        "attention__kv_lora_rank": 4,
        "attention__key_length": 6,
        "attention__value_length": 4,
        "rope__dimension_count": 2,
        "expert_count": experts,
        "expert_used_count": 2,
        "expert_feed_forward_length": 4,
        "expert_gating_func": gating,
    }
    if recorded:
        numbers |= {"expert_group_count": recorded[0], "expert_group_used_count": recorded[1]}
    path = _written(tmp_path / "m.gguf", "deepseek2", **numbers)
    config = load_config(gguf_files(path))
    assert (config.n_group, config.topk_group) == wanted
    assert config.scoring_func == {1: "softmax", 2: "sigmoid"}[gating]


def test_a_file_without_tokenizer_says_so(tmp_path: Path) -> None:
    path = write_gguf(random_model("llama"), tmp_path / "model.gguf")
    with pytest.raises(WeightsError, match="carries no tokenizer"):
        tokenizer_source(gguf_files(path))


def test_the_tokenizer_comes_out_of_the_metadata(smollm2_gguf: Path) -> None:
    metadata = tokenizer_source(gguf_files(smollm2_gguf))
    assert isinstance(metadata, dict)
    assert len(metadata["tokenizer.ggml.tokens"]) == 49152
    assert metadata["tokenizer.ggml.tokens"][1] == "<|im_start|>"


@pytest.mark.slow
def test_200_greedy_tokens_of_smollm2_equal_transformers(smollm2_gguf: Path) -> None:
    prompt = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    with mull.load(str(smollm2_gguf), precision="fp32") as ours:
        said = ours.generate(prompt, max_tokens=200, temperature=0.0, ignore_eos=True).token_ids
    assert len(said) == 200
    theirs = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        logits_TV = theirs(torch.tensor([[*prompt, *said[:-1]]])).logits[0]
    # Given our tokens so far, transformers picks the same next one at every step: by induction its
    # own 200 greedy tokens are these.
    assert logits_TV[len(prompt) - 1 :].argmax(-1).tolist() == said
