"""encode_topk on every backend: the contract, ties and special values exactly, bitwise invariance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import saekernels as sk
from cases import Case, encoder_cases, integer_cases
from oracle import check_top_k, order, pre_activations, same_bits

pytestmark = pytest.mark.usefixtures("poisoned_empty")
ACTIVATIONS = st.sampled_from(["relu", "none", "abs"])


def encode(case: Case, encoder: str, activation: str, rows: slice = slice(None)) -> sk.TopKCodes:
    return sk.encode_topk(
        case.x[rows], case.W, case.b, k=case.k, pre_bias=case.pre_bias, activation=activation, backend=encoder
    )


@given(case=encoder_cases(), activation=ACTIVATIONS)
@settings(max_examples=120)
def test_contract(encoder: str, case: Case, activation: str) -> None:
    got = encode(case, encoder, activation)
    assert got.values.shape == got.indices.shape == (case.x.shape[0], case.k)
    if case.x.shape[0]:
        check_top_k(*got, case.x, case.W, case.b, case.pre_bias, activation)


@given(case=integer_cases(), activation=ACTIVATIONS)
@settings(max_examples=150)
def test_exact_ties_and_special_values(encoder: str, case: Case, activation: str) -> None:
    pre = pre_activations(case.x, case.W, case.b, case.pre_bias)
    chosen = order(pre.abs() if activation == "abs" else pre)[:, : case.k]
    values = pre.gather(1, chosen)
    values = values.relu() if activation == "relu" else values
    got = encode(case, encoder, activation)
    assert torch.equal(got.indices.long(), chosen)
    torch.testing.assert_close(got.values, values.to(case.x.dtype), rtol=0, atol=0, equal_nan=True)
    assert not torch.signbit(got.values[got.values == 0]).any(), "a negative zero"


@given(case=encoder_cases(), activation=ACTIVATIONS)
def test_wide_values_are_those_before_the_rounding(encoder: str, case: Case, activation: str) -> None:
    options = {"k": case.k, "pre_bias": case.pre_bias, "activation": activation, "backend": encoder}
    got = sk.encode_topk(case.x, case.W, case.b, wide=True, **options)
    want = encode(case, encoder, activation)
    assert got.values.dtype == torch.float32
    assert same_bits((got.indices,), (want.indices,))
    torch.testing.assert_close(got.values.to(case.x.dtype), want.values, rtol=0, atol=0, equal_nan=True)
    score = got.values.abs() if activation == "abs" else got.values
    assert bool((score[:, :-1] >= score[:, 1:]).logical_or(score[:, :-1].isnan()).all()), "in order before the rounding"
    if case.x.dtype != torch.float32 and case.x.shape[0]:
        # float32 of the same numbers: what was accumulated.
        pre = pre_activations(case.x, case.W, case.b, case.pre_bias).gather(1, got.indices.long())
        pre = pre.relu() if activation == "relu" else pre
        scale = case.x.double().abs().nan_to_num(posinf=0).amax() * case.W.double().abs().nan_to_num(posinf=0).amax()
        room = 1e-5 * (1 + float(scale)) * case.x.shape[1]
        finite = pre.isfinite()
        torch.testing.assert_close(got.values.double()[finite], pre[finite], rtol=1e-5, atol=room)


@given(case=encoder_cases(), cut=st.integers(0, 33))
def test_rows_do_not_depend_on_the_batch(encoder: str, case: Case, cut: int) -> None:
    whole = encode(case, encoder, "none")
    assert same_bits(whole, encode(case, encoder, "none"))
    parts = [encode(case, encoder, "none", rows) for rows in (slice(0, cut), slice(cut, None))]
    assert same_bits(whole, tuple(torch.cat(pair) for pair in zip(*parts, strict=True)))


def test_many_rows_equal_single_rows(encoder: str) -> None:
    x, W, b = torch.randn(203, 96), torch.randn(1500, 96), torch.randn(1500)
    whole = sk.encode_topk(x, W, b, k=17, backend=encoder)
    single = [sk.encode_topk(x[row : row + 1], W, b, k=17, backend=encoder) for row in range(203)]
    assert same_bits(whole, tuple(torch.cat(pair) for pair in zip(*single, strict=True)))
    shuffled = torch.randperm(203)
    permuted = sk.encode_topk(x[shuffled], W, b, k=17, backend=encoder)
    assert same_bits(permuted, (whole.values[shuffled], whole.indices[shuffled]))


def test_thread_count_does_not_change_bits(encoder: str) -> None:
    x, W = torch.randn(70, 64), torch.randn(3000, 64)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(sk.encode_topk(x, W, k=20, backend=encoder))
    finally:
        torch.set_num_threads(before)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


def test_permuting_latents_permutes_indices(encoder: str) -> None:
    x, W = torch.randn(9, 32), torch.randn(500, 32)
    permutation = torch.randperm(500)
    plain = sk.encode_topk(x, W, k=12, backend=encoder)
    permuted = sk.encode_topk(x, W[permutation], k=12, backend=encoder)
    assert torch.equal(permutation[permuted.indices.long()], plain.indices.long())
    assert torch.equal(permuted.values, plain.values)


def test_leading_dimensions_and_empty(encoder: str) -> None:
    W = torch.randn(40, 6)
    assert sk.encode_topk(torch.randn(2, 3, 6), W, k=4, backend=encoder).values.shape == (2, 3, 4)
    assert sk.encode_topk(torch.randn(6), W, k=4, backend=encoder).values.shape == (4,)
    empty = sk.encode_topk(torch.randn(2, 0, 6), W, k=4, backend=encoder)
    assert empty.values.shape == empty.indices.shape == (2, 0, 4)


@pytest.mark.parametrize("k", [1, 700, 2048, 5000])
def test_large_k(encoder: str, k: int) -> None:
    x, W = torch.randn(5, 24), torch.randn(5000, 24)
    got = sk.encode_topk(x, W, k=k, activation="none", backend=encoder)
    check_top_k(*got, x, W, None, None, "none")


def test_ascending_scores_do_not_blow_up(encoder: str) -> None:
    """Every latent beats all before it: the worst order for a running threshold."""
    W = torch.arange(20000, dtype=torch.float32)[:, None]
    got = sk.encode_topk(torch.ones(3, 1), W, k=64, backend=encoder)
    assert torch.equal(got.indices, torch.arange(19999, 19935, -1, dtype=torch.int32).expand(3, 64))


def test_all_minus_infinity(encoder: str) -> None:
    got = sk.encode_topk(torch.ones(2, 3), torch.full((50, 3), -torch.inf), k=7, activation="none", backend=encoder)
    assert torch.equal(got.indices, torch.arange(7, dtype=torch.int32).expand(2, 7))
    assert (got.values == -torch.inf).all()


def test_a_hint_changes_no_bit_and_gets_no_gradient(encoder: str) -> None:
    x, W = torch.randn(2, 5, 16, requires_grad=True), torch.randn(300, 16)
    want = sk.encode_topk(x, W, k=7, backend=encoder)
    for hint in (0.5, torch.tensor(9.0), torch.linspace(-2, 2, 10).reshape(2, 5)):
        got = sk.encode_topk(x, W, k=7, hint=hint, backend=encoder)
        assert torch.equal(got.values, want.values)
        assert torch.equal(got.indices, want.indices)
    hint = torch.zeros(2, 5, requires_grad=True)
    got = sk.encode_topk(x, W, k=7, hint=hint, backend=encoder)
    assert torch.autograd.grad(got.values.sum(), [x, hint], allow_unused=True)[1] is None
