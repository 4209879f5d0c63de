"""Log-probabilities of tokens, and divergences from a teacher, without [T, V] logits ever existing.

The head is applied to a chunk of rows at a time; the backward pass computes each chunk's logits
anew. Products run in the hidden states' type, everything after them in float32 (float64 stays).

T rows that are learnt (choose them before) · C rows of a chunk · B rows of a block · D model ·
V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mull.kernels import training

# Logits of one chunk, in numbers: few enough to be held, enough for full-speed products.
_CHUNK_LOGITS = 2**25
# Of these as many as stay in a core's cache are worked on at a time in float32.
_BLOCK_LOGITS = 2**19


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
    # Cast apart from the graph: the head's gradient is summed in float32 and stays so.
    narrow_VD = _as_autocast(head_VD.detach())
    rows = chunk or _chunk_rows(head_VD)
    statistics: tuple[Tensor, Tensor, Tensor] = _TokenLogprobs.apply(
        _as_autocast(hidden_TD), head_VD, narrow_VD, targets_T, temperature, rows
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


def _wide_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Logits:
    """The memory for the logits of a chunk and of a block of it, used over and over: fresh memory
    for each chunk would cost more than the arithmetic on it."""

    def __init__(self, hidden_TD: Tensor, head_VD: Tensor, temperature: float, chunk: int) -> None:
        self.hidden_TD, self.head_VD, self.temperature = hidden_TD, head_VD, temperature
        self.rows, vocabulary = max(1, min(chunk, len(hidden_TD))), len(head_VD)
        self._chunk_CV = hidden_TD.new_empty(self.rows, vocabulary)
        self.block = max(1, min(self.rows, _BLOCK_LOGITS // vocabulary))
        wide = _wide_type(hidden_TD)
        self._blocks = hidden_TD.new_empty(2, self.block, vocabulary, dtype=wide)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, logits before the temperature in the products' type, to be written over)."""
        for part in _chunks(len(self.hidden_TD), self.rows):
            logits_CV = self._chunk_CV[: part.stop - part.start]
            torch.mm(self.hidden_TD[part], self.head_VD.T, out=logits_CV)
            yield part, logits_CV

    def blocks(self, part: slice, logits_CV: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, logits in float32 at the temperature, scratch memory of that shape)."""
        for own in _chunks(len(logits_CV), self.block):
            count = own.stop - own.start
            wide_BV = self._blocks[0, :count].copy_(logits_CV[own])
            if self.temperature != 1.0:
                wide_BV.div_(self.temperature)
            yield (
                slice(part.start + own.start, part.start + own.stop),
                wide_BV,
                self._blocks[1, :count],
            )


class _HeadGradient:
    """Gradients of hidden and head, put together chunk by chunk; the head's sum in float32.

    head_VD: as the products use it; dtype: of the head itself, and of its gradient.
    """

    def __init__(
        self, hidden_TD: Tensor, head_VD: Tensor, needed: tuple[bool, ...], dtype: torch.dtype
    ) -> None:
        self.hidden_TD, self.head_VD, self.dtype = hidden_TD, head_VD, dtype
        self.of_hidden = torch.empty_like(hidden_TD) if needed[0] else None
        self.of_head = (
            torch.zeros(head_VD.shape, dtype=_wide_type(head_VD), device=head_VD.device)
            if needed[1]
            else None
        )

        self._scratch: Tensor | None = None

    def add(self, rows: slice, gradient_CV: Tensor) -> None:
        """gradient_CV: of the rows' logits, in the products' type."""
        if self.of_hidden is not None:
            torch.mm(gradient_CV, self.head_VD, out=self.of_hidden[rows])
        if self.of_head is not None:
            hidden_CD = self.hidden_TD[rows]
            if hidden_CD.dtype == self.of_head.dtype:
                self.of_head.addmm_(gradient_CV.T, hidden_CD)
            else:
                self._add_narrow(self.of_head, gradient_CV, hidden_CD)

    def _add_narrow(self, of_head_VD: Tensor, gradient_CV: Tensor, hidden_CD: Tensor) -> None:
        if self._scratch is None:
            self._scratch = torch.empty_like(self.head_VD)
        torch.mm(gradient_CV.T, hidden_CD, out=self._scratch)
        # Block by block: a sum of two types first makes a whole wide copy of the narrow one.
        block = max(1, _BLOCK_LOGITS // self._scratch.shape[1])
        for rows in _chunks(len(of_head_VD), block):
            of_head_VD[rows].add_(self._scratch[rows].to(of_head_VD.dtype))

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        of_head = None if self.of_head is None else self.of_head.to(self.dtype)
        return self.of_hidden, of_head


def _chunks(rows: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head_VD: Tensor,
        narrow_VD: Tensor,
        targets_T: Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = len(hidden_TD)
        logprob_T, entropy_T, normaliser_T = torch.empty(
            3, rows, dtype=_wide_type(hidden_TD), device=hidden_TD.device
        ).unbind()
        is_top_T = torch.empty(rows, dtype=torch.bool, device=hidden_TD.device)
        logits = _Logits(hidden_TD, narrow_VD, temperature, chunk)
        for part, logits_CV in logits.chunks():
            if training.can_train(logits_CV):
                found = training.token_statistics(logits_CV, targets_T[part], temperature)
                for whole_T, found_C in zip(
                    (logprob_T, entropy_T, normaliser_T, is_top_T), found, strict=True
                ):
                    whole_T[part] = found_C
                continue
            for own, logits_BV, scratch_BV in logits.blocks(part, logits_CV):
                highest_B1 = logits_BV.amax(-1, keepdim=True)
                logits_BV.sub_(highest_B1)
                own_B = logits_BV.gather(1, targets_T[own, None])[:, 0]
                total_B = torch.exp(logits_BV, out=scratch_BV).sum(-1)
                log_total_B = total_B.log()
                is_top_T[own] = own_B >= 0
                logprob_T[own] = own_B - log_total_B
                # H = log Z - sum p x
                entropy_T[own] = log_total_B - scratch_BV.mul_(logits_BV).sum(-1) / total_B
                normaliser_T[own] = highest_B1[:, 0] + log_total_B
        ctx.save_for_backward(hidden_TD, narrow_VD, targets_T, normaliser_T)
        ctx.temperature, ctx.chunk, ctx.dtype = temperature, chunk, head_VD.dtype
        ctx.mark_non_differentiable(entropy_T, is_top_T)
        return logprob_T, entropy_T, is_top_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_T: Tensor, *_: Any) -> tuple[Any, ...]:
        """d logprob / d logits = (one at the target - probabilities) / temperature."""
        hidden_TD, narrow_VD, targets_T, normaliser_T = ctx.saved_tensors
        gradient = _HeadGradient(hidden_TD, narrow_VD, ctx.needs_input_grad, ctx.dtype)
        upstream_T1 = (upstream_T / ctx.temperature)[:, None]
        logits = _Logits(hidden_TD, narrow_VD, ctx.temperature, ctx.chunk)
        for part, logits_CV in logits.chunks():
            if training.can_train(logits_CV):
                training.token_gradients(
                    logits_CV,
                    targets_T[part],
                    normaliser_T[part],
                    upstream_T[part],
                    ctx.temperature,
                )
                gradient.add(part, logits_CV)
                continue
            for own, logits_BV, _scratch in logits.blocks(part, logits_CV):
                probs_BV = logits_BV.sub_(normaliser_T[own, None]).exp_()
                gradient_BV = probs_BV.mul_(-upstream_T1[own])
                gradient_BV.scatter_add_(1, targets_T[own, None], upstream_T1[own])
                logits_CV[own.start - part.start : own.stop - part.start] = gradient_BV
            gradient.add(part, logits_CV)
        return (*gradient.result(), None, None, None, None)


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
    @once_differentiable
    def backward(ctx: Any, upstream_T: Tensor) -> tuple[Any, ...]:
        """With respect to the student's logits: reverse p_s (log p_s/p_t - KL), forward p_s - p_t;
        both over the temperature."""
        hidden_TD, head_VD = ctx.saved_tensors[:2]
        gradient = _HeadGradient(hidden_TD, head_VD, ctx.needs_input_grad, head_VD.dtype)
        upstream_T1 = (upstream_T / ctx.temperature)[:, None]
        for part in _chunks(len(hidden_TD), ctx.chunk):
            student_CV, teacher_CV = _both_logprobs(ctx.saved_tensors, ctx.temperature, part)
            if ctx.reverse:
                gap_CV, probs_CV = student_CV - teacher_CV, student_CV.exp_()
                gap_CV -= torch.linalg.vecdot(probs_CV, gap_CV)[:, None]
                gradient_CV = probs_CV.mul_(gap_CV)
            else:
                gradient_CV = student_CV.exp_().sub_(teacher_CV.exp_())
            gradient.add(part, gradient_CV.mul_(upstream_T1[part]).to(hidden_TD.dtype))
        return (*gradient.result(), None, None, None, None, None)


def _both_logprobs(
    tensors: Sequence[Tensor], temperature: float, part: slice
) -> tuple[Tensor, Tensor]:
    hidden_TD, head_VD, teacher_hidden_TK, teacher_head_VK = tensors
    student_CV, teacher_CV = (
        (F.linear(hidden[part], head).to(_wide_type(hidden)) / temperature).log_softmax(-1)
        for hidden, head in ((hidden_TD, head_VD), (teacher_hidden_TK, teacher_head_VK))
    )
    return student_CV, teacher_CV
