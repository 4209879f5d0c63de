"""Log-probabilities of tokens, and divergences from a teacher, without [T, V] logits ever existing.

The head is applied to a chunk of rows at a time; the backward pass computes each chunk's logits
anew. Products run in the hidden states' type, everything after them in float32 (float64 stays).

T rows that are learnt (choose them before) · C rows of a chunk · D model · V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits of one chunk, in numbers: 64 MB of float32, and large enough for full-speed products.
_CHUNK_LOGITS = 2**24


def token_logprobs(
    hidden_TD: Tensor,
    head_VD: Tensor,
    targets_T: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(log-probability of each target, entropy of its distribution), both float32 [T].

    Differentiable in hidden and head; the entropy has no gradient. chunk: rows at a time. Under
    autocast hidden and head are cast as a linear layer would cast them.
    """
    logprob_T, entropy_T, _ = token_statistics(
        hidden_TD, head_VD, targets_T, temperature=temperature, chunk=chunk
    )
    return logprob_T, entropy_T


def token_statistics(
    hidden_TD: Tensor,
    head_VD: Tensor,
    targets_T: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`token_logprobs`, and whether each target is the likeliest token: bool [T]."""
    hidden_TD, head_VD = _as_autocast(hidden_TD), _as_autocast(head_VD)
    rows = chunk or _chunk_rows(head_VD)
    statistics: tuple[Tensor, Tensor, Tensor] = _TokenLogprobs.apply(
        hidden_TD, head_VD, targets_T, temperature, rows
    )
    return statistics


def teacher_divergence(
    hidden_TD: Tensor,
    head_VD: Tensor,
    teacher_hidden_TK: Tensor,
    teacher_head_VK: Tensor,
    *,
    form: Literal["reverse", "forward"] = "reverse",
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """float32 [T]: KL(student || teacher) (reverse, on-policy distillation: arXiv 2306.13649) or
    KL(teacher || student) (forward, equal to learning the teacher's whole distribution).

    Differentiable in the student's hidden states and head; the teacher is a constant.
    """
    tensors = [_as_autocast(x) for x in (hidden_TD, head_VD, teacher_hidden_TK, teacher_head_VK)]
    rows = chunk or _chunk_rows(head_VD)
    divergence_T: Tensor = _TeacherDivergence.apply(*tensors, form == "reverse", temperature, rows)
    return divergence_T


def _as_autocast(x: Tensor) -> Tensor:
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _chunk_rows(head_VD: Tensor) -> int:
    return max(64, _CHUNK_LOGITS // head_VD.shape[0])


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _wide_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _logits(hidden_CD: Tensor, head_VD: Tensor, temperature: float) -> Tensor:
    logits_CV = _wide(F.linear(hidden_CD, head_VD))
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)


class _HeadGradient:
    """Gradients of hidden and head, put together chunk by chunk; the head's sum in float32."""

    def __init__(self, hidden_TD: Tensor, head_VD: Tensor, needed: tuple[bool, ...]) -> None:
        self.hidden_TD, self.head_VD = hidden_TD, head_VD
        self.of_hidden = torch.empty_like(hidden_TD) if needed[0] else None
        self.of_head = (
            torch.zeros(head_VD.shape, dtype=_wide_type(head_VD), device=head_VD.device)
            if needed[1]
            else None
        )

    def add(self, rows: slice, gradient_CV: Tensor) -> None:
        gradient_CV = gradient_CV.to(self.hidden_TD.dtype)
        if self.of_hidden is not None:
            torch.mm(gradient_CV, self.head_VD, out=self.of_hidden[rows])
        if self.of_head is not None:
            hidden_CD = self.hidden_TD[rows]
            if hidden_CD.dtype == self.of_head.dtype:
                self.of_head.addmm_(gradient_CV.T, hidden_CD)
            else:
                self.of_head.add_(gradient_CV.T @ hidden_CD)

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        of_head = None if self.of_head is None else self.of_head.to(self.head_VD.dtype)
        return self.of_hidden, of_head


def _chunks(rows: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head_VD: Tensor,
        targets_T: Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = len(hidden_TD)
        logprob_T, entropy_T, normaliser_T = torch.empty(
            3, rows, dtype=_wide_type(hidden_TD), device=hidden_TD.device
        ).unbind()
        is_top_T = torch.empty(rows, dtype=torch.bool, device=hidden_TD.device)
        for part in _chunks(rows, chunk):
            logits_CV = _logits(hidden_TD[part], head_VD, temperature)
            normaliser_C1 = logits_CV.logsumexp(-1, keepdim=True)
            own_C1 = logits_CV.gather(1, targets_T[part, None])
            is_top_T[part] = own_C1[:, 0] >= logits_CV.amax(-1)
            logprobs_CV = logits_CV.sub_(normaliser_C1)
            logprob_T[part] = (own_C1 - normaliser_C1)[:, 0]
            entropy_T[part] = -torch.linalg.vecdot(logprobs_CV.exp(), logprobs_CV)
            normaliser_T[part] = normaliser_C1[:, 0]
        ctx.save_for_backward(hidden_TD, head_VD, targets_T, normaliser_T)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy_T, is_top_T)
        return logprob_T, entropy_T, is_top_T

    @staticmethod
    def backward(ctx: Any, upstream_T: Tensor, *_: Any) -> tuple[Any, ...]:
        """d logprob / d logits = (one at the target - probabilities) / temperature."""
        hidden_TD, head_VD, targets_T, normaliser_T = ctx.saved_tensors
        gradient = _HeadGradient(hidden_TD, head_VD, ctx.needs_input_grad)
        upstream_T1 = (upstream_T / ctx.temperature)[:, None]
        for part in _chunks(len(hidden_TD), ctx.chunk):
            logits_CV = _logits(hidden_TD[part], head_VD, ctx.temperature)
            probs_CV = logits_CV.sub_(normaliser_T[part, None]).exp_()
            gradient_CV = probs_CV.mul_(-upstream_T1[part])
            gradient_CV.scatter_add_(1, targets_T[part, None], upstream_T1[part])
            gradient.add(part, gradient_CV)
        return (*gradient.result(), None, None, None)


class _TeacherDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head_VD: Tensor,
        teacher_hidden_TK: Tensor,
        teacher_head_VK: Tensor,
        reverse: bool,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        tensors = (hidden_TD, head_VD, teacher_hidden_TK, teacher_head_VK)
        ctx.save_for_backward(*tensors)
        ctx.reverse, ctx.temperature, ctx.chunk = reverse, temperature, chunk
        divergence_T = torch.empty(
            len(hidden_TD), dtype=_wide_type(hidden_TD), device=hidden_TD.device
        )
        for part in _chunks(len(hidden_TD), chunk):
            student_CV, teacher_CV = _both_logprobs(tensors, temperature, part)
            first, second = (student_CV, teacher_CV) if reverse else (teacher_CV, student_CV)
            divergence_T[part] = torch.linalg.vecdot(first.exp(), first - second)
        return divergence_T

    @staticmethod
    def backward(ctx: Any, upstream_T: Tensor) -> tuple[Any, ...]:
        """With respect to the student's logits: reverse p_s (log p_s/p_t - KL), forward p_s - p_t;
        both over the temperature."""
        hidden_TD, head_VD = ctx.saved_tensors[:2]
        gradient = _HeadGradient(hidden_TD, head_VD, ctx.needs_input_grad)
        upstream_T1 = (upstream_T / ctx.temperature)[:, None]
        for part in _chunks(len(hidden_TD), ctx.chunk):
            student_CV, teacher_CV = _both_logprobs(ctx.saved_tensors, ctx.temperature, part)
            if ctx.reverse:
                gap_CV, probs_CV = student_CV - teacher_CV, student_CV.exp_()
                gap_CV -= torch.linalg.vecdot(probs_CV, gap_CV)[:, None]
                gradient_CV = probs_CV.mul_(gap_CV)
            else:
                gradient_CV = student_CV.exp_().sub_(teacher_CV.exp_())
            gradient.add(part, gradient_CV.mul_(upstream_T1[part]))
        return (*gradient.result(), None, None, None, None, None)


def _both_logprobs(
    tensors: Sequence[Tensor], temperature: float, part: slice
) -> tuple[Tensor, Tensor]:
    hidden_TD, head_VD, teacher_hidden_TK, teacher_head_VK = tensors
    student_CV = _logits(hidden_TD[part], head_VD, temperature).log_softmax(-1)
    teacher_CV = _logits(teacher_hidden_TK[part], teacher_head_VK, temperature).log_softmax(-1)
    return student_CV, teacher_CV
