"""The structs of native/training.h by field; loading the library compares their sizes."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p


class NormRows(ctypes.Structure):
    _fields_ = (
        ("x", c_void_p),
        ("weight", c_void_p),
        ("upstream", c_void_p),
        ("inverse", c_void_p),
        ("y", c_void_p),
        ("of_weight", c_void_p),
        ("rows", c_int64),
        ("width", c_int64),
        ("stride", c_int64),
        ("eps", c_float),
        ("is_backward", c_int32),
    )


class GatedRows(ctypes.Structure):
    _fields_ = (
        ("gate", c_void_p),
        ("up", c_void_p),
        ("upstream", c_void_p),
        ("inner", c_void_p),
        ("of_gate", c_void_p),
        ("of_up", c_void_p),
        ("rows", c_int64),
        ("width", c_int64),
        ("stride", c_int64),
        ("of_stride", c_int64),
    )


class SummedRows(ctypes.Structure):
    _fields_ = (
        ("table", c_void_p),
        ("places", c_void_p),
        ("weights", c_void_p),
        ("out", c_void_p),
        ("rows", c_int64),
        ("each", c_int64),
        ("width", c_int64),
        ("table_rows", c_int64),
    )


class DealtRows(ctypes.Structure):
    _fields_ = (
        ("upstream", c_void_p),
        ("places", c_void_p),
        ("weights", c_void_p),
        ("table", c_void_p),
        ("out", c_void_p),
        ("of_weights", c_void_p),
        ("rows", c_int64),
        ("width", c_int64),
        ("upstream_rows", c_int64),
    )


class ShortAttention(ctypes.Structure):
    _fields_ = (
        ("query", c_void_p),
        ("key", c_void_p),
        ("value", c_void_p),
        ("upstream", c_void_p),
        ("out", c_void_p),
        ("top", c_void_p),
        ("inverse", c_void_p),
        ("of_query", c_void_p),
        ("of_key", c_void_p),
        ("of_value", c_void_p),
        ("lengths", c_void_p),
        ("firsts", c_void_p),
        ("sequences", c_int64),
        ("heads", c_int64),
        ("groups", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("query_stride", c_int64),
        ("query_head_stride", c_int64),
        ("key_stride", c_int64),
        ("key_head_stride", c_int64),
        ("value_stride", c_int64),
        ("value_head_stride", c_int64),
        ("scale", c_float),
        ("unused", c_int32),
    )


class TokenRows(ctypes.Structure):
    _fields_ = (
        ("logits", c_void_p),
        ("targets", c_void_p),
        ("upstream", c_void_p),
        ("logprob", c_void_p),
        ("entropy", c_void_p),
        ("normaliser", c_void_p),
        ("is_top", c_void_p),
        ("rows", c_int64),
        ("vocabulary", c_int64),
        ("inverse_temperature", c_float),
        ("unused", c_int32),
    )
