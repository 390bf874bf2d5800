"""encode_threshold on every backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import saekernels as sk
from cases import Case, encoder_cases, integer_cases
from oracle import dot_error, pre_activations, rounding, same_bits

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def encode(case: Case, threshold: torch.Tensor | float, encoder: str, rows: slice = slice(None)) -> sk.CsrCodes:
    return sk.encode_threshold(case.x[rows], case.W, case.b, threshold, pre_bias=case.pre_bias, backend=encoder)


def thresholds(draw_scalar: bool, case: Case, level: float) -> torch.Tensor | float:
    if draw_scalar:
        return level
    return torch.linspace(level - 1, level + 1, case.W.shape[0])


@given(case=encoder_cases(), scalar=st.booleans(), level=st.sampled_from([-1e30, -1.0, 0.0, 0.7, 1e30]))
@settings(max_examples=120)
def test_contract(encoder: str, case: Case, scalar: bool, level: float) -> None:
    threshold = thresholds(scalar, case, level)
    got = encode(case, threshold, encoder)
    T = case.x.shape[0]
    assert got.offsets.shape == (T + 1,)
    assert got.offsets.dtype == torch.int64
    assert got.indices.dtype == torch.int32
    assert got.offsets[0] == 0
    assert got.offsets[-1] == got.values.numel() == got.indices.numel()
    if T == 0:
        return
    pre = pre_activations(case.x, case.W, case.b, case.pre_bias)
    slack = dot_error(case.x, case.W, case.b, case.pre_bias)
    limit = torch.as_tensor(threshold, dtype=torch.float32).double()
    rows = torch.arange(T).repeat_interleave(got.offsets.diff())
    kept = torch.zeros_like(pre, dtype=torch.bool)
    kept[rows, got.indices.long()] = True
    assert int(kept.sum()) == got.values.numel(), "repeated entries"
    assert not (kept & (pre <= limit - slack)).any(), "kept below the threshold"
    assert not (~kept & (pre > limit + slack)).any(), "dropped above the threshold"
    keys = rows * case.W.shape[0] + got.indices
    assert (keys.diff() > 0).all(), "indices do not ascend"
    expected = pre[rows, got.indices.long()]
    assert ((got.values.double() - expected).abs() <= slack[rows, 0] + rounding(expected, case.x.dtype)).all()


@given(case=integer_cases(), level=st.sampled_from([-3.0, -1.0, 0.0, 2.0]))
@settings(max_examples=100)
def test_exact_at_the_threshold(encoder: str, case: Case, level: float) -> None:
    """Integers: a pre-activation equal to its threshold is dropped, a NaN is kept."""
    pre = pre_activations(case.x, case.W, case.b, case.pre_bias)
    per_latent = (torch.arange(case.W.shape[0]) % 3 - 1 + level).float()
    for threshold in (level, per_latent):
        kept = (pre > threshold) | pre.isnan()
        got = encode(case, threshold, encoder)
        assert torch.equal(got.indices.long(), kept.nonzero()[:, 1])
        assert torch.equal(got.offsets.diff(), kept.sum(1))
        torch.testing.assert_close(got.values, pre[kept].to(case.x.dtype), rtol=0, atol=0, equal_nan=True)


@given(case=encoder_cases(), cut=st.integers(0, 33))
def test_rows_do_not_depend_on_the_batch(encoder: str, case: Case, cut: int) -> None:
    whole = encode(case, 0.3, encoder)
    assert same_bits(whole, encode(case, 0.3, encoder))
    first, second = (encode(case, 0.3, encoder, rows) for rows in (slice(0, cut), slice(cut, None)))
    joined = (
        torch.cat([first.values, second.values]),
        torch.cat([first.indices, second.indices]),
        torch.cat([first.offsets, second.offsets[1:] + first.offsets[-1]]),
    )
    assert same_bits(whole, joined)


def test_thread_count_does_not_change_bits(encoder: str) -> None:
    x, W, threshold = torch.randn(70, 64), torch.randn(3000, 64), torch.rand(3000) * 20
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(sk.encode_threshold(x, W, None, threshold, backend=encoder))
    finally:
        torch.set_num_threads(before)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


def test_agrees_with_encode_topk(encoder: str) -> None:
    """Both encoders compute one and the same pre-activation, bit for bit."""
    x, W, b = torch.randn(11, 48), torch.randn(400, 48), torch.randn(400)
    every = sk.encode_topk(x, W, b, k=400, activation="none", backend=encoder)
    dense = torch.empty(11, 400).scatter(1, every.indices.long(), every.values)
    above = sk.encode_threshold(x, W, b, 1.5, backend=encoder)
    assert torch.equal(above.values, dense[dense > 1.5])


def test_scalar_tensor_and_number_agree(encoder: str) -> None:
    x, W = torch.randn(4, 8), torch.randn(30, 8)
    assert same_bits(
        sk.encode_threshold(x, W, None, 0.25, backend=encoder),
        sk.encode_threshold(x, W, None, torch.tensor(0.25), backend=encoder),
    )


def test_nothing_and_everything(encoder: str) -> None:
    x, W = torch.randn(4, 8), torch.randn(30, 8)
    assert sk.encode_threshold(x, W, None, 1e9, backend=encoder).values.numel() == 0
    everything = sk.encode_threshold(x, W, None, -1e9, backend=encoder)
    assert torch.equal(everything.indices, torch.arange(30, dtype=torch.int32).repeat(4))


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_nothing_but_nan_is_above_a_nan_threshold(encoder: str, rows: int) -> None:
    x, W = torch.randn(rows, 20), torch.randn(70, 20)
    x[-1] = float("nan")
    per_latent = torch.full((70,), -9.0)
    per_latent[::3] = float("nan")
    for threshold in (float("nan"), per_latent):
        got = sk.encode_threshold(x, W, None, threshold, backend=encoder)
        limit = torch.as_tensor(threshold)
        pre = x @ W.T
        kept = (pre > limit) | pre.isnan()
        assert got.offsets.diff().tolist() == kept.sum(1).tolist()
        assert got.indices.tolist() == kept.nonzero()[:, 1].tolist()


def test_a_nan_has_the_same_bits_in_every_batch(encoder: str) -> None:
    """Infinities of both signs and NaN meet in a sum in another order for another number of rows."""
    torch.manual_seed(2)
    x, W = torch.randn(24, 32), torch.randn(100, 32)
    W[torch.rand(100, 32) < 0.03] = float("inf")
    x[torch.rand(24, 32) < 0.05] = float("nan")
    whole = sk.encode_threshold(x, W, backend=encoder)
    assert whole.values.isnan().sum() > 100
    for size in (1, 2, 3, 8):
        parts = [sk.encode_threshold(x[at : at + size], W, backend=encoder).values for at in range(0, 24, size)]
        assert torch.equal(torch.cat(parts).view(torch.int32), whole.values.view(torch.int32)), size
