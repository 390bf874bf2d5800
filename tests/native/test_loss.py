"""How accurate the native softmax statistics are, and what they do with logits that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from native_helpers import LEVELS, best_level_again, needs_native  # noqa: F401
from saekernels.backends import cpu

pytestmark = needs_native


def logits_as_weights(z: Tensor) -> tuple[Tensor, Tensor]:
    """h and W_U whose product is exactly z [n]."""
    return torch.ones(1, 1), z.reshape(-1, 1).contiguous()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_cross_entropy_and_kl_are_good_to_a_millionth(level: str, spread: float) -> None:
    cpu.set_simd_level(level)
    for vocabulary in (1, 2, 5, 511, 512, 513, 3001):
        p, q = torch.randn(2, 2, vocabulary) * spread
        h_p, h_q = torch.eye(2)[:1], torch.eye(2)[1:]
        W = torch.stack([p[0], q[0]], dim=1)
        target = torch.tensor([vocabulary // 2])
        ce_p, ce_q, kl, agree = cpu.linear_ce_kl(h_p, h_q, W, target, None, None, -100)
        log_p, log_q = (torch.log_softmax(row.double(), 0) for row in (p[0], q[0]))
        assert abs(float(ce_p) + float(log_p[target])) < 1e-6 * max(1.0, spread)
        assert abs(float(ce_q) + float(log_q[target])) < 1e-6 * max(1.0, spread)
        assert abs(float(kl) - float((log_p.exp() * (log_p - log_q)).sum())) < 1e-6 * max(1.0, spread)
        assert float(agree) == float(p[0].argmax() == q[0].argmax())


@pytest.mark.parametrize("level", LEVELS)
def test_kl_of_almost_equal_streams_is_not_negative(level: str) -> None:
    cpu.set_simd_level(level)
    h, W = torch.randn(400, 32), torch.randn(1000, 32)
    targets = torch.zeros(400, dtype=torch.int64)
    for noise in (0.0, 1e-7, 1e-5, 1e-3):
        kl = cpu.linear_ce_kl(h, h + noise * torch.randn_like(h), W, targets, None, None, -100)[2]
        assert float(kl.min()) >= -1e-7
        if noise == 0:
            assert float(kl.abs().max()) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_softcap_is_accurate_from_tiny_to_saturated(level: str) -> None:
    cpu.set_simd_level(level)
    z = torch.cat([torch.linspace(-200, 200, 4001), torch.logspace(-30, 0, 301), torch.zeros(1)])
    for i in range(0, z.numel(), 97):
        pair = torch.stack([z[i], torch.zeros(())])
        ce = cpu.linear_ce_kl(*[torch.ones(1, 1)] * 2, pair[:, None].clone(), torch.zeros(1).long(), None, 5.0, -100)[0]
        capped = 5.0 * torch.tanh(pair.double() / 5.0)
        assert abs(float(ce) - float(torch.logsumexp(capped, 0) - capped[0])) < 2e-6


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 7, 600])
def test_special_logits_do_what_log_softmax_does(level: str, special: float, position: int) -> None:
    cpu.set_simd_level(level)
    z = torch.randn(700)
    z[position] = special
    h, W = logits_as_weights(z)
    ce, _, kl, _ = cpu.linear_ce_kl(h, h, W, torch.tensor([3]), None, None, -100)
    want = -torch.log_softmax(z.double(), 0)[3:4].float()
    torch.testing.assert_close(ce, want, equal_nan=True, rtol=1e-6, atol=1e-6)
    assert bool(kl.isnan()) == bool(want.isnan())


def test_a_row_of_minus_infinity_is_nan() -> None:
    h, W = logits_as_weights(torch.full((600,), -math.inf))
    assert cpu.linear_ce_kl(h, h, W, torch.tensor([3]), None, None, -100)[0].isnan().all()


def test_where_p_is_zero_infinite_differences_add_nothing() -> None:
    W = torch.randn(20, 2)
    W[4] = torch.tensor([-math.inf, 0.0])
    W[5] = torch.tensor([-math.inf, -math.inf])
    rows = torch.eye(2)
    # 0 * inf is NaN in the product itself, so the streams are given as rows of a diagonal with a bias of -inf instead.
    finite = W.nan_to_num(neginf=0.0)
    bias = torch.zeros(20)
    bias[4:6] = -math.inf
    kl = cpu.linear_ce_kl(rows[:1], rows[1:], finite, torch.tensor([0]), bias, None, -100)[2]
    log_p, log_q = (torch.log_softmax((finite[:, i] + bias).double(), 0) for i in (0, 1))
    kept = log_p > -math.inf
    assert abs(float(kl) - float((log_p.exp() * (log_p - log_q))[kept].sum())) < 1e-6
