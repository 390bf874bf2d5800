"""decode, decode_csr and the maps of their gradients on every backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saekernels as sk
from oracle import UNIT_ROUNDOFF, rounding, same_bits

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def close(got: Tensor, expected: Tensor, size: Tensor, terms: int) -> bool:
    """|got - expected| within the rounding of a float32 sum of `terms` products of total magnitude `size`."""
    slack = (terms + 2) * UNIT_ROUNDOFF[torch.float32] * 1.01 * size
    return bool(((got.double() - expected).abs() <= slack + rounding(expected, got.dtype)).all())


@st.composite
def csr_problem(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """values, indices, offsets, W [F, d], a [T, d], bias [d]: ragged rows, empty ones, repeated latents, odd widths."""
    T, F = draw(st.sampled_from([0, 1, 5, 40])), draw(st.sampled_from([1, 3, 50]))
    d = draw(st.sampled_from([1, 2, 7, 16, 33, 100]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    counts = torch.randint(0, draw(st.sampled_from([1, 2, 9])), (T,), generator=generator)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    nnz = int(counts.sum())
    values = torch.randn(nnz, generator=generator).to(dtype)
    indices = torch.randint(0, F, (nnz,), generator=generator, dtype=torch.int32)
    W, a = (torch.randn(rows, d, generator=generator).to(dtype) for rows in (F, T))
    if draw(st.booleans()):
        W, a = W.T.contiguous().T, a.T.contiguous().T
    bias = torch.randn(d, generator=generator).to(draw(st.sampled_from([dtype, torch.float32])))
    return values, indices, offsets, W, a, bias


def rows_of(offsets: Tensor) -> Tensor:
    return torch.arange(offsets.numel() - 1).repeat_interleave(offsets.diff())


@given(problem=csr_problem())
@settings(max_examples=120)
def test_decode_csr(backend: str, problem: tuple[Tensor, ...]) -> None:
    values, indices, offsets, W, _, bias = problem
    terms = values[:, None].double() * W[indices.long()].double()
    T, d = offsets.numel() - 1, W.shape[1]
    rows = rows_of(offsets)
    expected = torch.zeros(T, d, dtype=torch.float64).index_add(0, rows, terms) + bias.double()
    size = torch.zeros(T, d, dtype=torch.float64).index_add(0, rows, terms.abs()) + bias.double().abs()
    got = sk.decode_csr(values, indices, offsets, W, bias, backend=backend)
    assert got.dtype == W.dtype
    assert close(got, expected, size, 10)
    wide = sk.decode_csr(values, indices, offsets, W, bias, wide=True, backend=backend)
    assert wide.dtype == torch.float32, "the sums before the rounding"
    assert close(wide, expected, size, 10), "the sums before the rounding"
    assert same_bits((wide.to(W.dtype),), (got,))
    assert same_bits((got,), (sk.decode_csr(values, indices.long(), offsets, W, bias, backend=backend),))


@given(problem=csr_problem())
@settings(max_examples=60)
def test_gather_dot(backend: str, problem: tuple[Tensor, ...]) -> None:
    _, indices, offsets, W, a, _ = problem
    terms = a[rows_of(offsets)].double() * W[indices.long()].double()
    got = torch.ops.saekernels.gather_dot(a, W, indices, offsets, backend=backend)
    assert got.dtype == a.dtype
    assert close(got, terms.sum(1), terms.abs().sum(1), W.shape[1])
    wide = torch.ops.saekernels.gather_dot(a, W, indices, offsets, wide=True, backend=backend)
    assert wide.dtype == torch.float32
    assert same_bits((wide.to(a.dtype),), (got,)), "the sums before the rounding"
    assert same_bits((torch.ops.saekernels.gather_dot(a.float(), W, indices, offsets, backend=backend),), (wide,))


@given(problem=csr_problem())
@settings(max_examples=60)
def test_segment_sums(backend: str, problem: tuple[Tensor, ...]) -> None:
    values, indices, offsets, W, a, _ = problem
    F = W.shape[0]
    terms = values[:, None].double() * a[rows_of(offsets)].double()
    zeros = torch.zeros(F, a.shape[1], dtype=torch.float64)
    got = torch.ops.saekernels.segment_outer(values, indices, offsets, a, F, backend=backend)
    assert got.dtype == a.dtype
    assert got.shape == (F, a.shape[1])
    assert close(got, zeros.index_add(0, indices, terms), zeros.index_add(0, indices, terms.abs()), values.numel())

    one = torch.zeros(F, dtype=torch.float64)
    got = torch.ops.saekernels.segment_sum(values, indices, F, backend=backend)
    expected, size = one.index_add(0, indices, values.double()), one.index_add(0, indices, values.double().abs())
    assert close(got, expected, size, values.numel())


@given(problem=csr_problem(), cut=st.integers(0, 40))
@settings(max_examples=60)
def test_rows_do_not_depend_on_the_batch(backend: str, problem: tuple[Tensor, ...], cut: int) -> None:
    values, indices, offsets, W, a, bias = problem
    cut = min(cut, offsets.numel() - 1)
    middle = int(offsets[cut])
    halves = (
        (values[:middle], indices[:middle], offsets[: cut + 1], a[:cut]),
        (values[middle:], indices[middle:], offsets[cut:] - middle, a[cut:]),
    )
    whole = sk.decode_csr(values, indices, offsets, W, bias, backend=backend)
    parts = [sk.decode_csr(v, i, o, W, bias, backend=backend) for v, i, o, _ in halves]
    assert same_bits((whole,), (torch.cat(parts),))
    whole = torch.ops.saekernels.gather_dot(a, W, indices, offsets, backend=backend)
    parts = [torch.ops.saekernels.gather_dot(rows, W, i, o, backend=backend) for _, i, o, rows in halves]
    assert same_bits((whole,), (torch.cat(parts),))


def test_decode_is_decode_csr_with_equal_rows(backend: str) -> None:
    values, indices = torch.randn(2, 3, 4), torch.randint(0, 9, (2, 3, 4), dtype=torch.int32)
    W, bias = torch.randn(9, 5), torch.randn(5)
    got = sk.decode(values, indices, W, bias, backend=backend)
    flat = sk.decode_csr(values.reshape(-1), indices.reshape(-1), torch.arange(0, 25, 4), W, bias, backend=backend)
    assert same_bits((got.view(6, 5),), (flat,))
    dense = torch.zeros(2, 3, 9).scatter_add(-1, indices.long(), values) @ W + bias
    torch.testing.assert_close(got, dense)


def test_sum_runs_in_the_order_of_entries(backend: str) -> None:
    """1e8 + 1 - 1e8 is 0 in float32 in that order and 1 in another."""
    values = torch.tensor([[1e8, 1.0, -1e8], [1e8, -1e8, 1.0]])
    indices = torch.zeros(2, 3, dtype=torch.int32)
    assert sk.decode(values, indices, torch.ones(1, 3), backend=backend)[:, 0].tolist() == [0.0, 1.0]
    offsets = torch.tensor([0, 3, 6])
    a = torch.ones(2, 3)
    for order, expected in (((0, 1, 2), 0.0), ((0, 2, 1), 1.0)):
        entries = values[0, list(order)].repeat(2)
        latents = torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.int32)
        got = torch.ops.saekernels.segment_outer(entries, latents, offsets, a, 2, backend=backend)
        assert got[:, 1].tolist() == [expected, expected]
        assert torch.ops.saekernels.segment_sum(entries, latents, 2, backend=backend).tolist() == [expected] * 2


def test_nan_and_infinity_pass_through(backend: str) -> None:
    W = torch.tensor([[1.0, torch.nan], [torch.inf, 2.0]])
    got = sk.decode(torch.tensor([[1.0], [2.0]]), torch.tensor([[0], [1]], dtype=torch.int32), W, backend=backend)
    torch.testing.assert_close(got, torch.tensor([[1.0, torch.nan], [torch.inf, 4.0]]), equal_nan=True)


@pytest.mark.parametrize("wrong", [-1, 9, 2**31 - 1])
def test_indices_out_of_range(backend: str, wrong: int) -> None:
    indices = torch.tensor([[0, wrong]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"indices: must lie in \[0, "):
        sk.decode(torch.ones(1, 2), indices, torch.randn(9, 4), backend=backend)


@pytest.mark.parametrize("offsets", [[0, 3], [1, 2], [0, 2, 1, 2], [0]])
def test_wrong_offsets(backend: str, offsets: list[int]) -> None:
    indices = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="offsets: must"):
        sk.decode_csr(torch.ones(2), indices, torch.tensor(offsets), torch.randn(9, 4), backend=backend)
