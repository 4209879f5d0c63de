"""Chunked log-probabilities and divergences against plain autograd over whole logits."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mull.train.logprobs import teacher_divergence, token_logprobs, token_statistics


class LargestTensor(TorchDispatchMode):
    """The most numbers any new tensor holds."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in known:
                self.numbers = max(self.numbers, each.numel())
        return result


def tensors(
    rows: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows + vocabulary)
    hidden_TD = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    head_VD = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    return hidden_TD, head_VD, torch.randint(0, vocabulary, (rows,))


def plain_logprobs(hidden_TD: Tensor, head_VD: Tensor, temperature: float) -> Tensor:
    return (hidden_TD @ head_VD.T / temperature).log_softmax(-1)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 40),
    vocabulary=st.integers(1, 30),
    chunk=st.integers(1, 50),
    temperature=st.sampled_from([1.0, 0.6, 2.0]),
)
def test_logprobs_entropy_and_gradients_equal_plain_autograd(
    rows: int, vocabulary: int, chunk: int, temperature: float
) -> None:
    hidden_TD, head_VD, targets_T = tensors(rows, 7, vocabulary)
    weight_T = torch.randn(rows, dtype=torch.float64)
    logprob_T, entropy_T, is_top_T = token_statistics(
        hidden_TD, head_VD, targets_T, temperature=temperature, chunk=chunk
    )
    ours = torch.autograd.grad((logprob_T * weight_T).sum(), (hidden_TD, head_VD))
    logprobs_TV = plain_logprobs(hidden_TD, head_VD, temperature)
    own_T = logprobs_TV.gather(1, targets_T[:, None])[:, 0]
    theirs = torch.autograd.grad((own_T * weight_T).sum(), (hidden_TD, head_VD))
    torch.testing.assert_close(logprob_T, own_T)
    torch.testing.assert_close(entropy_T, -(logprobs_TV.exp() * logprobs_TV).sum(-1))
    assert not entropy_T.requires_grad
    assert torch.equal(is_top_T, own_T >= logprobs_TV.amax(-1) if rows else is_top_T)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("form", ["reverse", "forward"])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_divergence_from_a_teacher_equals_plain_autograd(form: Any, chunk: int) -> None:
    hidden_TD, head_VD, _ = tensors(23, 6, 19)
    teacher_TK, teacher_VK, _ = (x.detach() for x in tensors(23, 11, 19))
    ours_T = teacher_divergence(
        hidden_TD, head_VD, teacher_TK, teacher_VK, form=form, temperature=0.8, chunk=chunk
    )
    student_TV = plain_logprobs(hidden_TD, head_VD, 0.8)
    teacher_TV = plain_logprobs(teacher_TK, teacher_VK, 0.8)
    pair = (student_TV, teacher_TV) if form == "reverse" else (teacher_TV, student_TV)
    theirs_T = (pair[0].exp() * (pair[0] - pair[1])).sum(-1)
    torch.testing.assert_close(ours_T, theirs_T)
    weight_T = torch.linspace(-1, 2, 23, dtype=torch.float64)
    ours = torch.autograd.grad((ours_T * weight_T).sum(), (hidden_TD, head_VD))
    theirs = torch.autograd.grad((theirs_T * weight_T).sum(), (hidden_TD, head_VD))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_student_equal_to_its_teacher_has_no_divergence_and_no_gradient() -> None:
    hidden_TD, head_VD, _ = tensors(9, 6, 19)
    for form in ("reverse", "forward"):
        kl_T = teacher_divergence(
            hidden_TD, head_VD, hidden_TD.detach(), head_VD.detach(), form=form
        )
        gradients = torch.autograd.grad(kl_T.sum(), (hidden_TD, head_VD))
        assert kl_T.abs().max() < 1e-12
        assert max(g.abs().max() for g in gradients) < 1e-12


def test_whole_logits_never_exist_forward_or_backward() -> None:
    rows, vocabulary, chunk = 512, 1000, 32
    hidden_TD, head_VD, targets_T = tensors(rows, 8, vocabulary, torch.float32)
    with LargestTensor() as largest:
        logprob_T, _ = token_logprobs(hidden_TD, head_VD, targets_T, chunk=chunk)
        logprob_T.sum().backward()
    assert largest.numbers <= 2 * chunk * vocabulary  # two blocks in one piece
    with LargestTensor() as largest:
        teacher_divergence(
            hidden_TD, head_VD, hidden_TD.detach(), head_VD.detach(), chunk=chunk
        ).sum().backward()
    assert largest.numbers == chunk * vocabulary


def test_a_frozen_head_gets_no_gradient_and_costs_none() -> None:
    hidden_TD, head_VD, targets_T = tensors(8, 6, 50)
    head_VD.requires_grad_(False)
    with LargestTensor() as largest:
        logprob_T, _ = token_logprobs(hidden_TD, head_VD, targets_T, chunk=2)
        logprob_T.sum().backward()
    assert head_VD.grad is None
    assert largest.numbers < head_VD.numel()


def test_bfloat16_by_autocast_stays_near_float32_with_float32_results() -> None:
    hidden_TD, head_VD, targets_T = tensors(40, 64, 90, torch.float32)
    exact_T, _ = token_logprobs(hidden_TD, head_VD, targets_T)
    exact = torch.autograd.grad(exact_T.sum(), (hidden_TD, head_VD))
    with torch.autocast("cpu", torch.bfloat16):
        rounded_T, _ = token_logprobs(hidden_TD, head_VD, targets_T)
    rounded = torch.autograd.grad(rounded_T.sum(), (hidden_TD, head_VD))
    assert rounded_T.dtype == torch.float32
    assert (rounded_T - exact_T).abs().mean() < 0.05
    for mine, other in zip(rounded, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.02 * other.norm()
