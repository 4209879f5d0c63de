"""The native library in another process, under an emulator where its processor is not this one.

`Elsewhere` stands for the loaded library. Both processes map one file at one address: a call's
tensors and structs are copied into it with their pointers set anew, and tensors
and the numbers of structs are copied back.
As a pytest plugin (`-p elsewhere`) it runs whole test files that way.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import shlex
import struct
import subprocess
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from mull.kernels import library

ADDRESS = 1 << 36  # neither a program nor its libraries lie there
BYTES = 1 << 28
REQUEST = struct.Struct("<32s8q")
NUMBERS = (ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_double)  # of a struct
GAP = b"\xee" * 192  # around every copy; looked at after the call

_tensors: dict[int, weakref.ref[Tensor]] = {}
_data_ptr = torch.Tensor.data_ptr


def _remembered(tensor: Tensor) -> int:
    _tensors[id(tensor)] = weakref.ref(tensor)
    return _data_ptr(tensor)


def _storages() -> list[tuple[int, int]]:
    """(address, bytes) of every living tensor whose address was asked for."""
    storages = set()
    for key, reference in list(_tensors.items()):
        if (tensor := reference()) is None:
            del _tensors[key]
        else:
            storage = tensor.untyped_storage()
            storages.add((storage.data_ptr(), storage.nbytes()))
    return sorted(storages)


class _Image:
    """One call's copy of everything that its arguments reach."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory, self.end, self.layers = memory, 0, 0
        self.storages = _storages()
        self.copies: dict[int, tuple[int, int]] = {}  # address -> bytes, where they went
        self.structs: list[tuple[ctypes.Structure, int]] = []  # arguments, where they went
        self.gaps: list[int] = []
        self._gap()

    def argument(self, value: Any, kind: Any) -> int:
        """kind: as the function declares it."""
        if value is None or isinstance(value, int):
            return self.reach(value) if kind is ctypes.c_void_p and value else value or 0
        if isinstance(value, bytes):
            return self.put(value + b"\0")
        return self.struct(value._obj)  # ctypes.byref

    def reach(self, address: int) -> int:
        """Where the copy of what lies at `address` is."""
        for start, size in self.storages:
            if start <= address < start + size:
                if start not in self.copies:
                    to = self.put(ctypes.string_at(start, size), start)
                    self.copies[start] = (size, to)
                return self.copies[start][1] + address - start
        # No tensor: pointers to caches, one a layer.
        pointers = (ctypes.c_void_p * self.layers).from_address(address)
        return self.put(struct.pack(f"<{self.layers}q", *(self.reach(p or 0) for p in pointers)))

    def struct(self, value: Any) -> int:
        address = self.put(self.set_anew(value))
        self.structs.append((value, address - ADDRESS))
        return address

    def set_anew(self, value: Any) -> bytes:
        if isinstance(value, ctypes.Array):
            return b"".join(self.set_anew(item) for item in value)
        self.layers = getattr(value, "num_layers", self.layers)
        raw = bytearray(value)
        for name, kind in value._fields_:
            field, at = getattr(value, name), getattr(type(value), name).offset
            if isinstance(field, ctypes.Structure):
                raw[at : at + ctypes.sizeof(kind)] = self.set_anew(field)
            elif kind is ctypes.c_void_p and field:
                raw[at : at + 8] = struct.pack("<q", self.reach(field))
            elif isinstance(field, ctypes._Pointer) and field:
                count = self.layers if name == "layers" else 1
                items = (kind._type_ * count).from_address(ctypes.addressof(field.contents))
                raw[at : at + 8] = struct.pack("<q", self.put(self.set_anew(items)))
        return bytes(raw)

    def put(self, data: bytes, like: int = 0) -> int:
        """As far from a multiple of 64 as the address `like`."""
        self.end += -self.end % 64 + like % 64
        at = self.end
        self.memory[at : at + len(data)] = data
        self.end += len(data)
        self._gap()
        return ADDRESS + at

    def _gap(self) -> None:
        self.gaps.append(self.end)
        self.memory[self.end : self.end + len(GAP)] = GAP
        self.end += 128

    def take_back(self) -> None:
        for gap in self.gaps:
            assert self.memory[gap : gap + 64] == GAP[:64], "written outside of the call's memory"
        for start, (size, to) in self.copies.items():
            data = self.memory[to - ADDRESS : to - ADDRESS + size]
            if data != ctypes.string_at(start, size):
                ctypes.memmove(start, data, size)
        for value, to in self.structs:
            copy = type(value).from_buffer_copy(self.memory, to)
            for name, kind in value._fields_:
                if kind in NUMBERS:
                    setattr(value, name, getattr(copy, name))


class Elsewhere:
    """Has the library's functions. `command` starts the driver with its library."""

    def __init__(self, command: list[str]) -> None:
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._file.truncate(BYTES)
        self._memory = mmap.mmap(self._file.fileno(), BYTES)
        self._process = subprocess.Popen(
            [*command, self._file.name, str(ADDRESS), str(BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._selected = b""
        torch.Tensor.data_ptr = _remembered  # type: ignore[method-assign]

    def close(self) -> None:
        torch.Tensor.data_ptr = _data_ptr  # type: ignore[method-assign]
        self._process.communicate(timeout=10)
        self._file.close()

    def mull_select(self, name: bytes) -> int:
        done = self._call("mull_select", name)
        self._selected = name if done else self._selected
        return done

    def mull_selected(self) -> bytes:
        return self._selected

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("mull_"):
            raise AttributeError(name)
        return functools.partial(self._call, name)

    def _call(self, name: str, *arguments: Any) -> int:
        image = _Image(self._memory)
        kinds = library._SIGNATURES[name][1]
        numbers = [image.argument(*pair) for pair in zip(arguments, kinds, strict=True)]
        request = REQUEST.pack(name.encode(), *numbers, *[0] * (8 - len(numbers)))
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        pipe_in.write(request)
        pipe_in.flush()
        reply = pipe_out.read(8)
        assert len(reply) == 8, f"{name} ended the driver: {self._process.wait()}"
        image.take_back()
        return ctypes.c_int32(struct.unpack("<q", reply)[0] & 0xFFFFFFFF).value


def _native(command: list[str], variant: str) -> library._Native:
    """What mull.kernels.library holds of a library, of this one."""
    native = object.__new__(library._Native)
    remote = Elsewhere(command)
    sizes = torch.zeros(len(library._STRUCTS), dtype=torch.int64)
    remote.mull_sizes(sizes.data_ptr())
    assert sizes.tolist() == [ctypes.sizeof(kind) for kind in library._STRUCTS]
    assert remote.mull_select(variant.encode())
    native.library, native.reason, native.runtime = remote, "", "libgomp"  # type: ignore[assignment]
    return native


@contextlib.contextmanager
def running(command: list[str], variant: str) -> Iterator[None]:
    """The kernels run elsewhere. Tensors are known only if their addresses are asked for here."""
    native, here = _native(command, variant), library._native
    library._native = functools.cache(lambda: native)
    try:
        yield
    finally:
        library._native = here
        native.library.close()  # type: ignore[union-attr]


settings.register_profile("emulated kernels", max_examples=5, deadline=None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every so many of them: an emulator takes its time."""
    items[:] = items[:: int(os.environ.get("MULL_ELSEWHERE_EVERY", "1"))]


def pytest_configure() -> None:
    settings.load_profile("emulated kernels")
    native = _native(
        shlex.split(os.environ["MULL_ELSEWHERE"]), os.environ["MULL_ELSEWHERE_VARIANT"]
    )
    plain = library._Native  # for tests of what happens without native code

    @functools.cache
    def chosen() -> library._Native:
        return plain() if os.environ.get("MULL_KERNELS") == "torch" else native

    library._native = chosen
