"""Penalties, gated codes and the running threshold against dense tensors and autograd through them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saekernels as sk
from saekernels import training

T, D, F = 9, 6, 40


def entries(values: list[float], indices: list[int], offsets: list[int]) -> sk.ops.CsrCodes:
    return sk.ops.CsrCodes(
        torch.tensor(values), torch.tensor(indices, dtype=torch.int32), torch.tensor(offsets, dtype=torch.int64)
    )


def weights(seed: int) -> tuple[Tensor, ...]:
    """x [T, D], W_enc, W_dec [F, D] and three vectors [F], all with gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((T, D), (F, D), (F, D), (F,), (F,), (F,))
    return tuple((torch.randn(*shape, generator=generator) * 0.5).requires_grad_() for shape in shapes)


def same_gradients(ours: Tensor, dense: Tensor, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(ours, leaves, allow_unused=True)
    want = torch.autograd.grad(dense, leaves, allow_unused=True)
    for mine, other, leaf in zip(got, want, leaves, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(
            zero if mine is None else mine, zero if other is None else other, rtol=1e-4, atol=1e-5
        )


PENALTIES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "l1": (lambda c, n: training.l1_loss(c), lambda f, n: f.sum(1).mean()),
    "l1 with norms": (lambda c, n: training.l1_loss(c, n), lambda f, n: (f * n).sum(1).mean()),
    "tanh": (lambda c, n: training.tanh_loss(c, 2.0, n), lambda f, n: torch.tanh(2 * f * n).sum(1).mean()),
}


@given(name=st.sampled_from(list(PENALTIES)), seed=st.integers(0, 99), shift=st.sampled_from([-9.0, -0.5, 0.5]))
@settings(max_examples=25)
def test_penalties_are_the_dense_ones(name: str, seed: int, shift: float) -> None:
    """With many active latents, with few, and with none."""
    x, W_enc, W_dec, b, *_ = weights(seed)
    ours, dense = PENALTIES[name]
    f = (x @ W_enc.T + b + shift).relu()
    codes = sk.encode_threshold(x, W_enc, b + shift, 0.0)
    same_gradients(ours(codes, W_dec.norm(dim=1)), dense(f, W_dec.norm(dim=1)), (x, W_enc, W_dec, b))


def test_l1_is_of_magnitudes() -> None:
    codes = sk.ops.CsrCodes(
        torch.tensor([-2.0, 3.0, 0.5]), torch.tensor([0, 1, 0], dtype=torch.int32), torch.tensor([0, 2, 2, 3])
    )
    assert float(training.l1_loss(codes)) == pytest.approx(5.5 / 3)
    assert training.row_sums(codes.values, codes.offsets).tolist() == [1.0, 0.0, 0.5]


def test_gates_are_never_below_zero_in_half_precision() -> None:
    """A threshold is compared before the sum is rounded."""
    x, W, b = torch.randn(200, 16).bfloat16(), torch.randn(300, 16).bfloat16(), 5 * torch.randn(300).bfloat16()
    gates = training.encode_gated(x, W, b, torch.zeros(300), torch.zeros(300)).gates
    assert float(gates.values.min()) >= 0
    dense = (x.double() @ W.double().T + b.double()).relu()
    ours = sk.decode_csr(gates.values.float(), gates.indices, gates.offsets, torch.eye(300))
    torch.testing.assert_close(ours.double(), dense, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("target", [None, 3.0])
def test_l0_counts_with_the_gradients_of_the_steps(target: float | None) -> None:
    x, W_enc, _, b, t, _ = weights(1)
    threshold = t.detach().abs().requires_grad_()
    codes, l0, active = training.encode_jumprelu(x, W_enc, b, threshold, bandwidth=0.4)[:3]
    pre = (x @ W_enc.T + b).detach()
    count, near = (pre > threshold).double(), ((pre - threshold).abs() < 0.2).double()
    rows = count.sum(1)
    value = rows.mean() if target is None else (2 / target * (rows - target).square()).mean()
    outer = torch.ones(T).double() / T if target is None else 4 / target * (rows - target) / T
    got = training.l0_loss(active, codes, target)
    assert float(got.detach()) == pytest.approx(float(value), rel=1e-6)
    assert float(l0.detach()) == pytest.approx(float(rows.mean()), rel=1e-6)
    (gradient,) = torch.autograd.grad(got, threshold)
    torch.testing.assert_close(gradient.double(), -(outer[:, None] * near).sum(0) / 0.4, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 99), with_bias=st.booleans())
@settings(max_examples=20)
def test_gated_codes_are_the_dense_paths(seed: int, with_bias: bool) -> None:
    x, W_enc, W_dec, b_gate, r_mag, b_mag = weights(seed)
    p = torch.full((D,), 0.1, requires_grad=True) if with_bias else None
    rows = x if p is None else x - p
    codes, gates = training.encode_gated(x, W_enc, b_gate, r_mag, b_mag, pre_bias=p)
    s = rows @ W_enc.T
    opened = ((s + b_gate) > 0).float()
    f, via = opened * (r_mag.exp() * s + b_mag).relu(), (s + b_gate).relu()
    ours = (sk.decode_csr(*codes, W_dec) - x).square().sum() + (
        sk.decode_csr(*gates, W_dec.detach()) - x
    ).square().sum()
    dense = (f @ W_dec - x).square().sum() + (via @ W_dec.detach() - x).square().sum()
    leaves = (x, W_enc, W_dec, b_gate, r_mag, b_mag, *(() if p is None else (p,)))
    same_gradients(ours + training.l1_loss(gates), dense + via.sum(1).mean(), leaves)


def test_a_gated_sae_has_the_codes_of_the_op() -> None:
    sae = sk.SAE(D, F, sk.Gated())
    with torch.no_grad():
        for one in sae.parameters():
            one.copy_(torch.randn_like(one) * 0.5)
    x = torch.randn(T, D)
    found = training.encode_gated(x, sae.W_enc, sae.b_gate, sae.r_mag, sae.b_mag, pre_bias=sae.pre_bias)
    codes = sae.encode(x)
    assert torch.equal(codes.values, found.codes.values)
    assert torch.equal(codes.indices, found.codes.indices)


def test_the_running_threshold_follows_the_least_positive_value() -> None:
    codes = sk.ops.CsrCodes(
        torch.tensor([0.0, 3.0, 2.0]), torch.tensor([0, 1, 0], dtype=torch.int32), torch.tensor([0, 2, 3])
    )
    none = sk.ops.CsrCodes(codes.values * 0, codes.indices, codes.offsets)
    threshold = torch.tensor(1.0)
    assert float(training.running_threshold(threshold, codes, 0.25)) == 1.25
    assert float(training.running_threshold(threshold, none, 0.25)) == 1.0


ONES = [torch.ones(4)] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: training.tanh_loss(c, 0.0), "scale: got 0.0, need a finite number above 0"),
        (lambda c: training.l0_loss(c.values, c, 0), "target: got 0, need a finite number above 0"),
        (lambda c: training.l0_loss(c.values[:1], c), r"active: got shape \[1\], need \[3\]"),
        (lambda c: training.l1_loss(c, torch.ones(0)), "norms: latents of codes"),
        (lambda c: training.l1_loss(c, torch.ones(4, 1)), r"norms: got torch.float32 of shape \[4, 1\]"),
        (lambda c: training.l1_loss(c._replace(offsets=c.offsets[:1])), "codes: got no row"),
        (lambda c: training.l1_loss(c._replace(offsets=c.offsets + 1)), "offsets: must begin with 0"),
        (lambda c: training.running_threshold(torch.ones(2), c, 0.5), r"threshold: got torch.float32 of shape \[2\]"),
        (lambda c: training.decode_prefixes(c, torch.eye(4), [2, 9]), r"widths: got \[2, 9\], need whole numbers that"),
        (lambda c: training.decode_prefixes(c, torch.eye(4), [3, 2, 4]), r"widths: got \[3, 2, 4\]"),
        (lambda c: training.decode_prefixes(c, torch.eye(4), []), r"widths: got \[\]"),
        (lambda c: training.decode_prefixes(c._replace(indices=c.indices + 3), torch.eye(4), [1, 3]), "got latent 3"),
        (lambda c: training.decode_prefixes(c, torch.eye(4), [1, 4]), "codes: their latents must ascend within"),
        (
            lambda c: training.encode_gated(torch.ones(2, 3), torch.ones(4, 3), torch.ones(5), *ONES),
            "b_gate: got shape",
        ),
        (lambda c: training.running_threshold(torch.ones(()), c, 2.0), "rate: got 2.0, need a number of 0 to 1"),
        (
            lambda c: training.encode_gated(*(torch.ones(2, 3, 1), torch.ones(4, 1)), *[torch.ones(4)] * 3),
            "x: got shape",
        ),
        (
            lambda c: training.encode_gated(torch.ones(2, 3), torch.ones(4, 3), *[torch.ones(4)] * 2, torch.ones(3)),
            "b_mag: got",
        ),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[sk.ops.CsrCodes], object], message: str) -> None:
    codes = entries([1.0, 1.0, 1.0], [0, 0, 0], [0, 1, 3])
    with pytest.raises(ValueError, match=message):
        call(codes)
