"""The structs of native/abi.h by field; loading the library compares their sizes."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p


class Linear(ctypes.Structure):
    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("n", c_int64),
        ("k", c_int64),
        ("kind", c_int32),
        ("unused", c_int32),
    )


class Layer(ctypes.Structure):
    _fields_ = (
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("qkv", Linear),
        ("out", Linear),
        ("gate", Linear),
        ("up", Linear),
        ("down", Linear),
    )


class Paging(ctypes.Structure):
    _fields_ = (
        ("block_table", c_void_p),
        ("query_starts", c_void_p),
        ("context", c_void_p),
        ("sequences", c_int64),
        ("blocks_per_sequence", c_int64),
        ("num_blocks", c_int64),
        ("block_size", c_int64),
    )


class Stack(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        ("final_norm", c_void_p),
        ("num_layers", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("eps", c_float),
        ("scale", c_float),
    )


class Step(ctypes.Structure):
    _fields_ = (
        ("ids", c_void_p),
        ("embedding", ctypes.POINTER(Linear)),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("key_cache", c_void_p),
        ("value_cache", c_void_p),
        ("paging", Paging),
        ("rows", c_int64),
        ("cache_kind", c_int32),
        ("unused", c_int32),
    )


class Routing(ctypes.Structure):
    _fields_ = (
        ("experts", c_int64),
        ("chosen", c_int64),
        ("groups", c_int64),
        ("kept_groups", c_int64),
        ("scoring", c_int32),
        ("group_rule", c_int32),
        ("normalise", c_int32),
        ("scaling", c_float),
    )


class LatentLayer(ctypes.Structure):
    _fields_ = (
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("q_norm", c_void_p),
        ("latent_norm", c_void_p),
        ("entry", Linear),
        ("q", Linear),
        ("up_key", Linear),
        ("up_value", Linear),
        ("out", Linear),
        ("gate", Linear),
        ("up", Linear),
        ("down", Linear),
        ("router", Linear),
        ("selection_bias", c_void_p),
        ("expert_gate_up", Linear),
        ("expert_down", Linear),
    )


class LatentStack(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(LatentLayer)),
        ("final_norm", c_void_p),
        ("num_layers", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("latent", c_int64),
        ("nope", c_int64),
        ("rope", c_int64),
        ("value", c_int64),
        ("routing", Routing),
        ("eps", c_float),
        ("scale", c_float),
        ("interleaved", c_int32),
        ("unused", c_int32),
    )


class NextToken(ctypes.Structure):
    _fields_ = (
        ("token_norm", c_void_p),
        ("hidden_norm", c_void_p),
        ("join", Linear),
        ("stack", LatentStack),
    )


class Draw(ctypes.Structure):
    _fields_ = (
        ("logits", c_void_p),
        ("inverse_temperature", c_void_p),
        ("noise", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
        ("min_p", c_void_p),
        ("tokens", c_void_p),
        ("sureness", c_void_p),
        ("logprobs", c_void_p),
        ("logprob_scale", c_void_p),
        ("rows", c_int64),
        ("vocabulary", c_int64),
        ("stride", c_int64),
    )


class Places(ctypes.Structure):
    _fields_ = (
        ("first", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("context", c_void_p),
        ("query_starts", c_void_p),
    )


class Decode(ctypes.Structure):
    _fields_ = (
        ("stack", ctypes.POINTER(Stack)),
        ("latent_stack", ctypes.POINTER(LatentStack)),
        ("head", ctypes.POINTER(Linear)),
        ("step", Step),
        ("places", Places),
        ("hidden", c_void_p),
        ("logits", c_void_p),
        ("inverse_temperature", c_void_p),
        ("noise", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
        ("min_p", c_void_p),
        ("logprob_scale", c_void_p),
        ("ends", c_void_p),
        ("tokens", c_void_p),
        ("logprobs", c_void_p),
        ("interrupt", c_void_p),
        ("rows", c_int64),
        ("vocabulary", c_int64),
        ("ends_each", c_int64),
        ("steps", c_int64),
        ("most_ended", c_int64),
        ("made", c_int64),
    )


class Guess(ctypes.Structure):
    _fields_ = (
        ("module", ctypes.POINTER(NextToken)),
        ("head", ctypes.POINTER(Linear)),
        ("step", Step),
        ("places", Places),
        ("hidden", c_void_p),
        ("logits", c_void_p),
        ("room", c_void_p),
        ("inverse_temperature", c_void_p),
        ("noise", c_void_p),
        ("rates", c_void_p),
        ("means", c_void_p),
        ("costs", c_void_p),
        ("tokens", c_void_p),
        ("sureness", c_void_p),
        ("chances", c_void_p),
        ("rows", c_int64),
        ("vocabulary", c_int64),
        ("surenesses", c_int64),
        ("rated_depths", c_int64),
        ("depth", c_int64),
        ("least_depth", c_int64),
        ("passes", c_int64),
        ("expected", c_double),
        ("further_seconds", c_double),
    )


class GuessedSteps(ctypes.Structure):
    _fields_ = (
        ("stack", ctypes.POINTER(LatentStack)),
        ("step", Step),
        ("guess", ctypes.POINTER(Guess)),
        ("ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("bounds", c_void_p),
        ("hidden", c_void_p),
        ("ahead", c_void_p),
        ("logits", c_void_p),
        ("inverse_temperature", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
        ("min_p", c_void_p),
        ("logprob_scale", c_void_p),
        ("noise", c_void_p),
        ("costs", c_void_p),
        ("ends", c_void_p),
        ("draft", c_void_p),
        ("sureness", c_void_p),
        ("tokens", c_void_p),
        ("logprobs", c_void_p),
        ("guessed", c_void_p),
        ("sure", c_void_p),
        ("counts", c_void_p),
        ("seconds", c_void_p),
        ("interrupt", c_void_p),
        ("least_chance", c_double),
        ("least_rate", c_double),
        ("vocabulary", c_int64),
        ("ends_each", c_int64),
        ("most_rows", c_int64),
        ("most", c_int64),
        ("left", c_int64),
        ("steps", c_int64),
        ("first", c_int64),
        ("capacity", c_int64),
        ("drafted", c_int64),
        ("checked", c_int64),
        ("made", c_int64),
        ("steps_made", c_int64),
    )


class Attention(ctypes.Structure):
    _fields_ = (
        ("q", c_void_p),
        ("key", c_void_p),
        ("value", c_void_p),
        ("out", c_void_p),
        ("paging", Paging),
        ("rows", c_int64),
        ("q_stride", c_int64),
        ("out_stride", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("key_token_stride", c_int64),
        ("key_head_stride", c_int64),
        ("value_token_stride", c_int64),
        ("value_head_stride", c_int64),
        ("scale", c_float),
        ("cache_kind", c_int32),
        ("out_form", c_int32),
        ("is_latent", c_int32),
    )


class CacheRows(ctypes.Structure):
    _fields_ = (
        ("cache", c_void_p),
        ("rows", c_void_p),
        ("slots", c_void_p),
        ("count", c_int64),
        ("num_slots", c_int64),
        ("block_size", c_int64),
        ("heads", c_int64),
        ("width", c_int64),
        ("value_width", c_int64),
        ("role", c_int32),
        ("unused", c_int32),
    )
