"""GGUF against transformers' logits of the same weights, and against llama.cpp on the same file."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from weights_examples import (
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

from mull.errors import WeightsError
from mull.weights import load_config, load_model, tokenizer_source
from mull.weights.gguf_file import READABLE_TYPES, GgufFile
from mull.weights.gguf_header import MAX_METADATA_VALUES


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


def test_version_2_reads_like_version_3_and_others_are_refused(tmp_path: Path) -> None:
    path = write_gguf(random_model("llama"), tmp_path / "model.gguf")
    good = path.read_bytes()
    path.write_bytes(good[:4] + b"\x02\0\0\0" + good[8:])
    assert load_config(gguf_files(path)).hidden_size == 64
    for version, said in ((b"\x01\0\0\0", "version 1"), (b"\0\0\0\x03", "big-endian")):
        path.write_bytes(good[:4] + version + good[8:])
        with pytest.raises(WeightsError, match=said):
            load_config(gguf_files(path))


def _string(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def _gguf(pairs: list[bytes], tensors: list[bytes] = [], data: bytes = b"") -> bytes:  # noqa: B006
    counts = len(tensors).to_bytes(8, "little") + len(pairs).to_bytes(8, "little")
    head = b"GGUF\x03\0\0\0" + counts + b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def _entry(name: bytes, shape: list[int], kind: int, offset: int) -> bytes:
    numbers = b"".join(size.to_bytes(8, "little") for size in shape)
    return (
        _string(name)
        + len(shape).to_bytes(4, "little")
        + numbers
        + kind.to_bytes(4, "little")
        + offset.to_bytes(8, "little")
    )


def _array(kind: int, count: int, items: bytes) -> bytes:
    header = kind.to_bytes(4, "little") + count.to_bytes(8, "little")
    return _string(b"key") + (9).to_bytes(4, "little") + header + items


HUGE = 2**63
DAMAGED = {
    "nothing": b"",
    "not gguf": b"PK\x03\x04" + b"\0" * 60,
    "only the magic": b"GGUF",
    "tensor count": b"GGUF\x03\0\0\0" + HUGE.to_bytes(8, "little") + b"\0" * 40,
    "metadata count": b"GGUF\x03\0\0\0" + b"\0" * 8 + HUGE.to_bytes(8, "little") + b"\0" * 40,
    "string length": _gguf([HUGE.to_bytes(8, "little") + b"abc" + b"\0" * 40]),
    "array of bytes": _gguf([_array(0, HUGE, b"\0" * 40)]),
    "array of strings": _gguf([_array(8, 2**40, b"\0" * 400)]),
    "array of more values than allowed": _gguf(
        [_array(0, MAX_METADATA_VALUES + 1, b"\0" * (MAX_METADATA_VALUES + 1))]
    ),
    "arrays in arrays": _gguf([_array(9, 1, (b"\x09\0\0\0" + b"\x01" + b"\0" * 7) * 50)]),
    "array of unknown type": _gguf([_array(77, 1, b"\0" * 40)]),
    "unknown type": _gguf([_string(b"key") + b"\x63\0\0\0" + b"\0" * 40]),
    "key twice": _gguf([_string(b"key") + b"\0\0\0\0\x01"] * 2),
    "not UTF-8": _gguf([_string(b"\xff\xfe") + b"\0\0\0\0\x01" + b"\0" * 40]),
    "alignment": _gguf([_string(b"general.alignment") + b"\x04\0\0\0" + b"\x18\0\0\0"]),
    "alignment of zero": _gguf([_string(b"general.alignment") + b"\x04\0\0\0" + b"\0\0\0\0"]),
    "five dimensions": _gguf([], [_entry(b"t", [1] * 5, 0, 0)], b"\0" * 64),
    "no dimension": _gguf([], [_entry(b"t", [], 0, 0) + b"\0" * 40], b"\0" * 64),
    "empty dimension": _gguf([], [_entry(b"t", [8, 0], 0, 0)], b"\0" * 64),
    "sizes that wrap around": _gguf([], [_entry(b"t", [2**33, 2**33], 0, 0)], b"\0" * 64),
    "beyond the file": _gguf([], [_entry(b"t", [64], 0, 0)], b"\0" * 64),
    "offset beyond the file": _gguf([], [_entry(b"t", [8], 0, 2**62)], b"\0" * 64),
    "offset not aligned": _gguf([], [_entry(b"t", [8], 0, 4)], b"\0" * 64),
    "unknown tensor type": _gguf([], [_entry(b"t", [8], 99, 0)], b"\0" * 64),
    "half a block": _gguf([], [_entry(b"t", [40], 8, 0)], b"\0" * 64),
    "tensor twice": _gguf([], [_entry(b"t", [8], 0, 0), _entry(b"t", [8], 0, 32)], b"\0" * 64),
    "overlap": _gguf([], [_entry(b"t", [16], 0, 0), _entry(b"u", [8], 0, 32)], b"\0" * 96),
    "a name with a line break": _gguf([], [_entry(b"t\nu", [8], 0, 0)], b"\0" * 64),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_header_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(DAMAGED[what])
    with pytest.raises(WeightsError, match=r"bad\.gguf") as caught:
        GgufFile(path)
    assert "\n" not in str(caught.value)


def test_the_helper_that_writes_damaged_headers_can_write_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    two = [_entry(b"t", [8], 0, 0), _entry(b"u", [4, 2], 0, 32)]
    path.write_bytes(
        _gguf([_array(9, 1, b"\x00\0\0\0" + b"\x02" + b"\0" * 7 + b"ab")], two, b"\0" * 64)
    )
    file = GgufFile(path)
    assert file.metadata == {"key": [[97, 98]]}
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {"t": (8,), "u": (2, 4)}


def test_a_gguf_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(random_model("llama"), tmp_path / "model.gguf")
    good = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 600, 7), *range(600, len(good), len(good) // 97), len(good) - 1]:
        cut.write_bytes(good[:length])
        with pytest.raises(WeightsError, match=r"cut\.gguf"):
            load_model(gguf_files(cut))


def _written(path: Path, architecture: str, **numbers: int) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in numbers.items():
        writer.add_uint32(f"{architecture}.{key.replace('__', '.')}", value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 4), np.float32))
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
    theirs = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        generated = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=200,
            min_new_tokens=200,
            eos_token_id=None,
            pad_token_id=0,
        )[0].tolist()
    assert len(generated) == len(prompt) + 200
    del theirs
    ours = load_model(gguf_files(smollm2_gguf), dtype=torch.float32)
    # Given transformers' tokens so far, ours picks the same next one at every step: by induction
    # our own 200 greedy tokens are these.
    picks = our_logits(ours, generated[:-1]).argmax(-1).tolist()
    assert picks[len(prompt) - 1 :] == generated[len(prompt) :]


MEASURE = """
import sys
from pathlib import Path
import torch
from mull.weights import ModelFiles, load_model

def anonymous_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

peak = 0
def watch(done, total):
    global peak, calls
    peak = max(peak, anonymous_bytes())

torch.zeros(1) @ torch.zeros(1)
before = anonymous_bytes()
model = load_model(
    ModelFiles("m", Path(sys.argv[1]), sys.argv[2]), dtype=torch.bfloat16, progress=watch
)
resident = sum(tensor.nbytes for tensor in model.state_dict().values())
if model.config.tie_word_embeddings:
    resident -= model.lm_head.weight.nbytes
print(peak - before, resident)
"""


def test_loading_needs_at_most_1_3_times_the_resident_model(smollm2_gguf: Path) -> None:
    # Pages of the mapped file are the kernel's to drop, so only anonymous memory counts. It is read
    # after every few rows, while they are still held.
    command = [sys.executable, "-c", MEASURE, str(smollm2_gguf), "gguf"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, resident = map(int, result.stdout.split())
    assert resident == 134_515_008 * 2
    assert peak <= 1.3 * resident
