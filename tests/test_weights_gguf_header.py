"""Damaged GGUF headers, written byte by byte: each is refused by name, in one line."""

from pathlib import Path

import pytest
from weights_examples import gguf_files, random_model, write_gguf

from mull.errors import WeightsError
from mull.weights import load_model
from mull.weights.gguf_file import GgufFile
from mull.weights.gguf_header import MAX_METADATA_VALUES


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
