"""How packed weights lie in memory: their kinds and sizes. Mirrors native/abi.h; needs no torch."""

from __future__ import annotations

# Numbers of native/abi.h's Kind. q8: 8 bits and a scale per 32 inputs; q4: 4 bits, scale, minimum.
KINDS = {"fp32": 0, "bf16": 1, "q8": 2, "q4": 3}
# Changes whenever packed bytes of any kind, or which tensors are packed, change: files of another
# one are repacked.
LAYOUT_VERSION = 2
PANEL = 16  # outputs interleaved
PAIR = 64  # inputs of two groups that share a scale each
# Bytes of a panel of quantised weights per PAIR: scales (and minimums), then the numbers.
_PAIR_BYTES = {"q8": 64 + PANEL * PAIR, "q4": 64 + 64 + PANEL * PAIR // 2}


def packed_bytes(outputs: int, inputs: int, kind: str) -> int:
    """Bytes of a packed weight [outputs, inputs] of one of KINDS, its padding included."""
    panels = -(-outputs // PANEL)
    if kind in _PAIR_BYTES:
        return panels * -(-inputs // PAIR) * _PAIR_BYTES[kind]
    if kind == "bf16":
        return panels * PANEL * 2 * (inputs + inputs % 2)
    return panels * PANEL * 4 * inputs
