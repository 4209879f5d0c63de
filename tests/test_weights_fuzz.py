"""Mutated headers of both formats: thousands of damaged files, each loads or is one readable error.

While a case runs the process may take no more than 512 MB beyond what it had, so an allocation the
file talked us into is a MemoryError, which fails the test; an alarm does the same for a hang.
"""

import random
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil
import pytest
import torch
from weights_examples import folder_files, gguf_files, random_model, write_gguf

from mull.errors import MullError
from mull.weights import ModelFiles, load_model
from mull.weights.gguf_file import GgufFile

SECONDS_PER_CASE = 20
BYTES_PER_CASE = 512 << 20
EXTREMES = [
    0,
    1,
    2,
    7,
    31,
    33,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "vocab_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}
SMALL_MLA = {
    **SMALL,
    "num_hidden_layers": 2,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "moe_intermediate_size": 8,
}


def _hangs(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"a case took more than {SECONDS_PER_CASE} s")


@contextmanager
def bounded() -> Iterator[None]:
    """Limits on the address space and on time, lifted afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, _hangs)
    resource.setrlimit(
        resource.RLIMIT_AS, (psutil.Process().memory_info().vms + BYTES_PER_CASE, hard)
    )
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        torch.set_num_threads(threads)


def survives(files: ModelFiles) -> bool:
    """Whether it loaded; anything but a MullError of one line propagates and fails the test."""
    signal.alarm(SECONDS_PER_CASE)
    message = ""
    try:
        load_model(files, dtype=torch.float32)
    except MullError as error:
        message = str(error) or "an empty message"
    finally:
        signal.alarm(0)
    assert "\n" not in message
    assert len(message) < 2000
    return not message


def flip(data: bytearray, rng: random.Random, end: int) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(end)] = rng.randrange(256)


def extreme_number(data: bytearray, rng: random.Random, end: int) -> None:
    width = rng.choice([4, 8])
    at = rng.randrange(end - width)
    data[at : at + width] = (rng.choice(EXTREMES) % 2 ** (8 * width)).to_bytes(width, "little")


def cut(data: bytearray, rng: random.Random, end: int) -> None:
    del data[rng.randrange(len(data)) :]


def move(data: bytearray, rng: random.Random, end: int) -> None:
    """Copy a piece of the header over another: numbers of the right kind in the wrong place."""
    length = rng.choice([1, 4, 8, 24])
    source, target = rng.randrange(end - length), rng.randrange(end - length)
    data[target : target + length] = data[source : source + length]


def drop_or_double(data: bytearray, rng: random.Random, end: int) -> None:
    length = rng.randrange(1, 40)
    at = rng.randrange(end - length)
    data[at : at + length] = data[at : at + length] * rng.choice([0, 2])


MUTATIONS: list[Callable[[bytearray, random.Random, int], None]] = [
    flip,
    extreme_number,
    cut,
    move,
    drop_or_double,
]


def scramble_text(text: bytes, rng: random.Random) -> bytes:
    """A JSON text with one of its numbers or words replaced, or its bytes mutated."""
    kind = rng.randrange(3)
    if kind == 0:
        data = bytearray(text)
        rng.choice(MUTATIONS)(data, rng, len(data) - 40)
        return bytes(data)
    starts = [at for at, byte in enumerate(text) if chr(byte).isdigit()]
    at = rng.choice(starts)
    end = at
    while end < len(text) and chr(text[end]).isdigit():
        end += 1
    replacement = rng.choice(
        [
            *(str(number) for number in EXTREMES),
            "-1",
            "1.5",
            "1e400",
            "NaN",
            '"x"',
            "[]",
            "{}",
            "null",
        ]
    )
    return text[:at] + replacement.encode() + text[end:]


@pytest.fixture(scope="module", params=["llama", "qwen3", "deepseek_v3"])
def small_gguf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SMALL_MLA if "deepseek" in request.param else {**SMALL, "head_dim": 16}
    model = random_model(request.param, **sizes)
    return write_gguf(model, tmp_path_factory.mktemp(request.param) / "model.gguf", tokens=32)


def test_mutated_gguf_headers_load_or_are_refused(small_gguf: Path, tmp_path: Path) -> None:
    good = small_gguf.read_bytes()
    end = min(tensor.offset for tensor in GgufFile(small_gguf).tensors.values())
    assert survives(gguf_files(small_gguf))
    rng = random.Random(small_gguf.parent.name)
    path = tmp_path / "mutant.gguf"
    outcomes = []
    with bounded():
        for _ in range(500):
            data = bytearray(good)
            rng.choice(MUTATIONS)(data, rng, end)
            path.write_bytes(data)
            outcomes.append(survives(gguf_files(path)))
    # Both happen: a flipped byte in a name of the author is harmless, in a count it is not.
    assert 10 < sum(outcomes) < 450


@pytest.fixture(scope="module", params=["llama", "deepseek_v3"])
def small_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SMALL_MLA if "deepseek" in request.param else SMALL
    folder = tmp_path_factory.mktemp(request.param) / "model"
    random_model(request.param, **sizes).save_pretrained(folder, max_shard_size="10KB")
    return folder


def copied(folder: Path, target: Path) -> None:
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())


def test_mutated_safetensors_headers_load_or_are_refused(
    small_folder: Path, tmp_path: Path
) -> None:
    copied(small_folder, tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    originals = {path: path.read_bytes() for path in shards}
    rng = random.Random(small_folder.parent.name)
    outcomes = []
    with bounded():
        for _ in range(400):
            path = rng.choice(shards)
            good = originals[path]
            end = 8 + struct.unpack("<Q", good[:8])[0]
            if rng.random() < 0.5:
                text = scramble_text(good[8:end], rng)
                length = rng.choice([len(text), len(text), end - 8])
                path.write_bytes(length.to_bytes(8, "little") + text + good[end:])
            else:
                data = bytearray(good)
                rng.choice(MUTATIONS)(data, rng, end)
                path.write_bytes(data)
            outcomes.append(survives(folder_files(tmp_path)))
            path.write_bytes(good)
    assert sum(outcomes) < 350
    assert survives(folder_files(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_mutated_json_files_load_or_are_refused(
    small_folder: Path, tmp_path: Path, name: str
) -> None:
    copied(small_folder, tmp_path)
    good = (tmp_path / name).read_bytes()
    rng = random.Random(name)
    outcomes = []
    with bounded():
        for _ in range(250):
            (tmp_path / name).write_bytes(scramble_text(good, rng))
            outcomes.append(survives(folder_files(tmp_path)))
    assert 2 < sum(outcomes) < 245
