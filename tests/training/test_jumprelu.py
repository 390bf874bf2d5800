"""JumpReLU's codes, L0 loss and thresholds' gradients against the dense matrix with the same pseudo-derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saekernels.training import encode_jumprelu

T, D, F = 41, 24, 300


class DenseJump(torch.autograd.Function):
    """(relu(pre) * H(pre - threshold), H(pre - threshold)) as the paper differentiates them, on [T, F]."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        step = (pre > threshold).float()
        return pre.relu() * step, step

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        u = (pre - threshold) / ctx.bandwidth
        kernel = ((u > -0.5) & (u < 0.5)).float() / ctx.bandwidth
        d_threshold = (-threshold * kernel * grads[0] - kernel * grads[1]).sum(0)
        return grads[0] * (pre > threshold) * (pre > 0), d_threshold, None


def encoder() -> list[Tensor]:
    """x, W_enc, b_enc, pre_bias and threshold, each with a gradient."""
    torch.manual_seed(1)
    made = (torch.randn(T, D), torch.randn(F, D), torch.randn(F), torch.randn(D) * 0.3, torch.rand(F) * 4)
    return [one.requires_grad_() for one in made]


@pytest.mark.parametrize("bandwidth", [0.05, 1.0, 3.0], ids="bandwidth {}".format)
@pytest.mark.parametrize("l0_weight", [0.0, 0.7], ids="l0 {}".format)
def test_losses_and_gradients_are_those_of_the_dense_matrix(bandwidth: float, l0_weight: float) -> None:
    """Thresholds down to 0 and a wide band: entries below 0 are in the band, too."""
    ours, theirs = encoder(), encoder()
    W_dec = torch.randn(F, D)
    x, W_enc, b_enc, pre_bias, threshold = ours
    found = encode_jumprelu(x, W_enc, b_enc, threshold, bandwidth=bandwidth, pre_bias=pre_bias)
    (values, indices, offsets), l0 = found[:2]
    rows = torch.arange(T).repeat_interleave(offsets.diff())
    found = torch.zeros(T, F).index_put((rows, indices.long()), values)
    x, W_enc, b_enc, pre_bias, threshold = theirs
    dense, step = DenseJump.apply((x - pre_bias) @ W_enc.T + b_enc, threshold, bandwidth)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(l0, step.sum(1).mean())
    for codes, count, parameters in ((found, l0, ours), (dense, step.sum(1).mean(), theirs)):
        error = (codes @ W_dec - parameters[0]).square().sum(1).mean()
        (error + l0_weight * (count / 20 - 1).square()).backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3 * float(other.grad.abs().max()))
    assert float(theirs[4].grad.abs().max()) > 0


def test_only_what_is_near_a_threshold_moves_it() -> None:
    x, W_enc = torch.tensor([[0.70], [0.76], [1.24], [1.30]]), torch.ones(1, 1)
    for row, moves in enumerate([False, True, True, False]):
        threshold = torch.ones(1, requires_grad=True)
        (values, _, _), l0 = encode_jumprelu(x[row : row + 1], W_enc, None, threshold, bandwidth=0.5)[:2]
        (l0 + 3 * values.sum()).backward()
        assert float(threshold.grad) == pytest.approx(-(1 + 3 * 1) / 0.5 if moves else 0.0), row  # type: ignore[arg-type]


def test_negative_thresholds_count_as_zero() -> None:
    x, W_enc, b_enc, _, _ = (one.detach() for one in encoder())
    low = encode_jumprelu(x, W_enc, b_enc, torch.full((F,), -0.5), bandwidth=0.1)
    zero = encode_jumprelu(x, W_enc, b_enc, torch.zeros(F), bandwidth=0.1)
    assert float(low.l0) == float(zero.l0) == pytest.approx(float(((x @ W_enc.T + b_enc) > 0).sum(1).float().mean()))
    assert torch.equal(low.codes.values, zero.codes.values)
    assert float(low.codes.values.min()) == 0


def test_wrong_uses_are_named() -> None:
    with pytest.raises(ValueError, match=r"^x: got shape \[24\], need \[T, d\]$"):
        encode_jumprelu(torch.randn(D), torch.randn(F, D), None, torch.ones(F), bandwidth=1.0)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"^bandwidth: got {wrong}, need a finite number above 0$"):
            encode_jumprelu(torch.randn(4, D), torch.randn(F, D), None, torch.ones(F), bandwidth=wrong)
