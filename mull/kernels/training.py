"""What a training step does between its products, in native code, forward and backward.

torch makes a pass over memory for every operation and its gradient, and keeps or gathers what lies
between; here each is one pass. float32 on the CPU only: `can_train` says so, and callers keep their
form in torch for everything else (mull/model is where both stand side by side).

T tokens · S rows · D width · F hidden width · H query heads · G key heads · d, e head widths
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mull.kernels import library

# Heads of other widths are left to torch.
_HEAD_WIDTH = 16


def can_train(*tensors: Tensor) -> bool:
    """Whether the functions below take these."""
    return library.native_available() and all(
        x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors
    )


def norm(x_SD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(RMSNorm of every row [S, D], 1 / rms [S]). Rows may lie apart."""
    x_SD = _together(x_SD)
    y_SD = torch.empty(x_SD.shape)
    inverse_S = torch.empty(len(x_SD))
    _call("mull_norm", _norm(x_SD, weight_D, inverse_S, y_SD, eps=eps))
    return y_SD, inverse_S


def norm_backward(
    x_SD: Tensor, weight_D: Tensor, inverse_S: Tensor, upstream_SD: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of (x [S, D], weight [D])."""
    x_SD = _together(x_SD)
    of_x_SD, of_weight_D = torch.empty(x_SD.shape), torch.empty(weight_D.shape)
    rows = _norm(x_SD, weight_D, inverse_S, of_x_SD)
    rows.is_backward = 1
    upstream_SD = upstream_SD.contiguous()
    rows.upstream, rows.of_weight = upstream_SD.data_ptr(), of_weight_D.data_ptr()
    _call("mull_norm", rows)
    return of_x_SD, of_weight_D


def gated(gate_SF: Tensor, up_SF: Tensor) -> Tensor:
    """silu(gate) * up, [S, F]. Rows may lie apart, in both alike."""
    gate_SF, up_SF = _alike(gate_SF, up_SF)
    inner_SF = torch.empty(gate_SF.shape)
    rows = _gated(gate_SF, up_SF)
    rows.inner = inner_SF.data_ptr()
    _call("mull_gated", rows)
    return inner_SF


def gated_backward(
    gate_SF: Tensor,
    up_SF: Tensor,
    upstream_SF: Tensor,
    of_gate_SF: Tensor,
    of_up_SF: Tensor,
    inner_SF: Tensor | None = None,
) -> None:
    """Writes the gradients of gate and up (rows as far apart in both, numbers together), and what
    `gated` gave once more."""
    gate_SF, up_SF = _alike(gate_SF, up_SF)
    rows = _gated(gate_SF, up_SF)
    upstream_SF = upstream_SF.contiguous()
    rows.upstream = upstream_SF.data_ptr()
    rows.of_gate, rows.of_up = of_gate_SF.data_ptr(), of_up_SF.data_ptr()
    rows.of_stride = of_gate_SF.stride(0)
    if inner_SF is not None:
        rows.inner = inner_SF.data_ptr()
    _call("mull_gated", rows)


def summed(table_SD: Tensor, places_Tk: Tensor, weights_S: Tensor | None = None) -> Tensor:
    """Of every token the sum of its k rows of the table, each times its weight, [T, D]."""
    out_TD = torch.empty(len(places_Tk), table_SD.shape[1])
    table_SD, places_Tk = table_SD.contiguous(), places_Tk.contiguous()
    weights_S = None if weights_S is None else weights_S.contiguous()
    rows = library.SummedRows(
        table=table_SD.data_ptr(),
        places=places_Tk.data_ptr(),
        weights=None if weights_S is None else weights_S.data_ptr(),
        out=out_TD.data_ptr(),
        rows=len(places_Tk),
        each=places_Tk.shape[1],
        width=table_SD.shape[1],
        table_rows=len(table_SD),
    )
    _call("mull_summed", rows)
    return out_TD


def dealt(
    upstream_TD: Tensor, tokens_S: Tensor, weights_S: Tensor, table_SD: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `summed`, of (table [S, D], weights [S]); tokens_S: the token of every row."""
    of_table_SD, of_weights_S = torch.empty(table_SD.shape), torch.empty(len(table_SD))
    upstream_TD, table_SD = upstream_TD.contiguous(), table_SD.contiguous()
    tokens_S, weights_S = tokens_S.contiguous(), weights_S.contiguous()
    rows = library.DealtRows(
        upstream=upstream_TD.data_ptr(),
        places=tokens_S.data_ptr(),
        weights=weights_S.data_ptr(),
        table=table_SD.data_ptr(),
        out=of_table_SD.data_ptr(),
        of_weights=of_weights_S.data_ptr(),
        rows=len(table_SD),
        width=table_SD.shape[1],
        upstream_rows=len(upstream_TD),
    )
    _call("mull_dealt", rows)
    return of_table_SD, of_weights_S


@dataclass(frozen=True)
class Spans:
    """Sequences on a packed axis. lengths, firsts (first token): int64 [N]."""

    lengths: Tensor
    firsts: Tensor

    @classmethod
    def of(cls, spans: Sequence[tuple[int, int]]) -> Spans:
        """spans: (length, first token) of each, in packed order, none beyond the axis."""
        both = torch.tensor(spans, dtype=torch.int64).reshape(-1, 2)
        return cls(both[:, 0].contiguous(), both[:, 1].contiguous())


@dataclass(frozen=True)
class Softmax:
    """What the backward pass needs of the forward pass's: of every row the largest score, and one
    over the sum of exponentials, both [T', H]."""

    top_TH: Tensor
    inverse_TH: Tensor


def can_attend(q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor) -> bool:
    """Whether `attended` takes these."""
    widths = q_THd.shape[2], v_TGe.shape[2]
    return can_train(q_THd, k_TGd, v_TGe) and not any(w % _HEAD_WIDTH for w in widths)


def attended(
    q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, spans: Spans, tokens: int, scale: float
) -> tuple[Tensor, Softmax]:
    """Causal attention inside each of the spans, which have so many tokens in all: [T', H, e], of
    those tokens alone, in packed order."""
    q_THd, k_TGd, v_TGe = (_together(x) for x in (q_THd, k_TGd, v_TGe))
    heads = q_THd.shape[1]
    out_THe = torch.empty(tokens, heads, v_TGe.shape[2])
    softmax = Softmax(torch.empty(tokens, heads), torch.empty(tokens, heads))
    wanted = _attention(q_THd, k_TGd, v_TGe, spans, scale, softmax)
    wanted.out = out_THe.data_ptr()
    _call("mull_short_attention", wanted)
    return out_THe, softmax


def attended_backward(
    q_THd: Tensor,
    k_TGd: Tensor,
    v_TGe: Tensor,
    spans: Spans,
    scale: float,
    softmax: Softmax,
    upstream_THe: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; zeros at tokens that are in none of the spans."""
    is_whole = len(upstream_THe) == len(q_THd)
    make = torch.empty if is_whole else torch.zeros
    of_q, of_k, of_v = make(q_THd.shape), make(k_TGd.shape), make(v_TGe.shape)
    q_THd, k_TGd, v_TGe = (_together(x) for x in (q_THd, k_TGd, v_TGe))
    wanted = _attention(q_THd, k_TGd, v_TGe, spans, scale, softmax)
    upstream_THe = upstream_THe.contiguous()
    wanted.upstream = upstream_THe.data_ptr()
    wanted.of_query, wanted.of_key = of_q.data_ptr(), of_k.data_ptr()
    wanted.of_value = of_v.data_ptr()
    _call("mull_short_attention", wanted)
    return of_q, of_k, of_v


def token_statistics(
    logits_SV: Tensor, targets_S: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log-probability of each target, entropy, log of the sum of exponentials, all float32 [S];
    whether the target is the likeliest, bool [S]) of logits over the temperature."""
    logprob_S, entropy_S, normaliser_S = torch.empty(3, len(logits_SV)).unbind()
    is_top_S = torch.empty(len(logits_SV), dtype=torch.bool)
    logits_SV, targets_S = logits_SV.contiguous(), targets_S.contiguous()
    rows = _tokens(logits_SV, targets_S, normaliser_S, temperature)
    rows.logprob, rows.entropy = logprob_S.data_ptr(), entropy_S.data_ptr()
    rows.is_top = is_top_S.data_ptr()
    _call("mull_tokens", rows)
    return logprob_S, entropy_S, normaliser_S, is_top_S


def token_gradients(
    logits_SV: Tensor,
    targets_S: Tensor,
    normaliser_S: Tensor,
    upstream_S: Tensor,
    temperature: float,
) -> None:
    """Writes over the logits (dense) what the sum of upstream * logprob changes with each."""
    upstream_S, targets_S = upstream_S.contiguous(), targets_S.contiguous()
    rows = _tokens(logits_SV, targets_S, normaliser_S, temperature)
    rows.upstream = upstream_S.data_ptr()
    _call("mull_tokens", rows)


def _tokens(
    logits_SV: Tensor, targets_S: Tensor, normaliser_S: Tensor, temperature: float
) -> library.TokenRows:
    return library.TokenRows(
        logits=logits_SV.data_ptr(),
        targets=targets_S.data_ptr(),
        normaliser=normaliser_S.data_ptr(),
        rows=len(logits_SV),
        vocabulary=logits_SV.shape[1],
        inverse_temperature=1.0 / temperature,
    )


def _together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _alike(a_SF: Tensor, b_SF: Tensor) -> tuple[Tensor, Tensor]:
    is_so = a_SF.stride() == b_SF.stride() and a_SF.stride(1) == 1
    return (a_SF, b_SF) if is_so else (a_SF.contiguous(), b_SF.contiguous())


def _norm(
    x_SD: Tensor, weight_D: Tensor, inverse_S: Tensor, y_SD: Tensor, *, eps: float = 0.0
) -> library.NormRows:
    return library.NormRows(
        x=x_SD.data_ptr(),
        weight=weight_D.data_ptr(),
        inverse=inverse_S.data_ptr(),
        y=y_SD.data_ptr(),
        rows=len(x_SD),
        width=x_SD.shape[1],
        stride=x_SD.stride(0),
        eps=eps,
    )


def _gated(gate_SF: Tensor, up_SF: Tensor) -> library.GatedRows:
    return library.GatedRows(
        gate=gate_SF.data_ptr(),
        up=up_SF.data_ptr(),
        rows=len(gate_SF),
        width=gate_SF.shape[1],
        stride=gate_SF.stride(0),
    )


def _attention(
    q_THd: Tensor, k_TGd: Tensor, v_TGe: Tensor, spans: Spans, scale: float, softmax: Softmax
) -> library.ShortAttention:
    return library.ShortAttention(
        query=q_THd.data_ptr(),
        key=k_TGd.data_ptr(),
        value=v_TGe.data_ptr(),
        top=softmax.top_TH.data_ptr(),
        inverse=softmax.inverse_TH.data_ptr(),
        lengths=spans.lengths.data_ptr(),
        firsts=spans.firsts.data_ptr(),
        sequences=len(spans.lengths),
        heads=q_THd.shape[1],
        groups=k_TGd.shape[1],
        key_dim=q_THd.shape[2],
        value_dim=v_TGe.shape[2],
        query_stride=q_THd.stride(0),
        query_head_stride=q_THd.stride(1),
        key_stride=k_TGd.stride(0),
        key_head_stride=k_TGd.stride(1),
        value_stride=v_TGe.stride(0),
        value_head_stride=v_TGe.stride(1),
        scale=scale,
    )


def _call(name: str, wanted: ctypes.Structure) -> None:
    lib = library.library()
    assert lib is not None
    library.check(getattr(lib, name)(ctypes.byref(wanted), library.threads()))
