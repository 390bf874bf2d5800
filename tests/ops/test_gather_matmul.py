"""gather_matmul on every backend: against float64, bits that hang on nothing else, gradients, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saekernels as sk
from oracle import UNIT_ROUNDOFF, rounding, same_bits

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def rows_of(offsets: Tensor) -> Tensor:
    return torch.arange(offsets.numel() - 1).repeat_interleave(offsets.diff())


def terms_of(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    """[nnz, B, d]: what is summed, in the dtype of a."""
    return a[:, rows_of(offsets)].transpose(0, 1) * W[indices.long()][:, None].to(a.dtype)


@st.composite
def problem(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a [B, T, d], W [F, d], indices, offsets: ragged rows and empty ones, odd widths, several layouts and dtypes."""
    B, T, F = draw(st.sampled_from([0, 1, 7, 33])), draw(st.sampled_from([0, 1, 6])), draw(st.sampled_from([1, 3, 50]))
    d = draw(st.sampled_from([1, 2, 16, 33, 300]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    counts = torch.randint(0, draw(st.sampled_from([1, 3, 20])), (T,), generator=generator)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    indices = torch.randint(0, F, (int(counts.sum()),), generator=generator, dtype=torch.int32)
    layout = draw(st.permutations(range(3)))
    a = torch.randn([(B, T, d)[axis] for axis in layout], generator=generator).to(dtype)
    a = a.permute([layout.index(axis) for axis in range(3)])
    W = torch.randn(F, 2, d, generator=generator).to(dtype)[:, 1]
    if draw(st.booleans()):
        W = W.T.contiguous().T
    return (a.float() if draw(st.booleans()) else a), W, indices, offsets


@given(problem=problem(), cut=st.integers(0, 40))
@settings(max_examples=60)
def test_right_and_the_same_bits_in_any_batch(backend: str, problem: tuple[Tensor, ...], cut: int) -> None:
    a, W, indices, offsets = problem
    terms = terms_of(a.double(), W, indices, offsets)
    got = sk.gather_matmul(a, W, indices, offsets, backend=backend)
    wide = sk.gather_matmul(a, W, indices.long(), offsets, wide=True, backend=backend)
    assert got.dtype == a.dtype
    assert wide.dtype == torch.float32
    slack = (W.shape[1] + 2) * UNIT_ROUNDOFF[torch.float32] * 1.01 * terms.abs().sum(2)
    assert bool(((wide - terms.sum(2)).abs() <= slack + rounding(terms.sum(2), torch.float32)).all())
    assert same_bits((wide.to(a.dtype),), (got,)), "the sums before the rounding"

    row, vector = min(cut, offsets.numel() - 1), min(cut, len(a))
    middle = int(offsets[row])
    top = sk.gather_matmul(a[:, :row], W, indices[:middle], offsets[: row + 1], backend=backend)
    rest = sk.gather_matmul(a[vector:, row:], W, indices[middle:], offsets[row:] - middle, backend=backend)
    assert same_bits((top, rest), (got[:middle], got[middle:, vector:]))


def test_two_vectors_and_two_rows_by_hand(backend: str) -> None:
    a = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [2.0, 2.0]]])
    W, indices = torch.tensor([[0.0, 1.0], [1.0, 2.0]]), torch.tensor([1, 0], dtype=torch.int32)
    got = sk.gather_matmul(a, W, indices, torch.tensor([0, 1, 2]), backend=backend)
    assert got.tolist() == [[1.0, 3.0], [1.0, 2.0]]


def test_rows_of_more_entries_and_vectors_than_a_tile_holds(backend: str) -> None:
    a, W = torch.randn(270, 2, 20), torch.randn(40, 20)
    indices, offsets = torch.randint(0, 40, (300,), dtype=torch.int32), torch.tensor([0, 2, 300])
    got = sk.gather_matmul(a, W, indices, offsets, backend=backend)
    torch.testing.assert_close(got, terms_of(a, W, indices, offsets).sum(2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("half_W", [False, True])
def test_gradients(backend: str, sparse: bool, half_W: bool) -> None:
    a, W = torch.randn(5, 3, 8).transpose(0, 1).requires_grad_(), torch.randn(50, 8)
    W = (W.half() if half_W else W).requires_grad_()
    indices, offsets = torch.tensor([4, 9, 9, 0, 4, 2], dtype=torch.int32), torch.tensor([0, 2, 2, 3, 5, 6])
    weight = torch.randn(6, 3)
    got = sk.gather_matmul(a, W, indices, offsets, sparse_grad=sparse, backend=backend)
    ours = torch.autograd.grad((got * weight).sum(), (a, W))
    exact = [value.detach().double().requires_grad_() for value in (a, W)]
    theirs = torch.autograd.grad((terms_of(*exact, indices, offsets).sum(2) * weight).sum(), exact)
    close = 3e-3 if half_W else 1e-5
    torch.testing.assert_close(ours[0].double(), theirs[0], rtol=close, atol=close)
    assert ours[1].is_sparse == sparse
    assert ours[1].dtype == W.dtype
    if sparse:
        assert ours[1].indices()[0].tolist() == [0, 2, 4, 9]
    torch.testing.assert_close(ours[1].to_dense().double(), theirs[1], rtol=close, atol=close)


def test_autocast_casts_both(backend: str) -> None:
    a, W = torch.randn(2, 3, 8), torch.randn(9, 8)
    where = torch.tensor([8, 0, 3]), torch.tensor([0, 1, 1, 3])
    with torch.autocast("cpu", torch.float16):
        got = sk.gather_matmul(a, W, *where, backend=backend)
    assert same_bits((got,), (sk.gather_matmul(a.half(), W.half(), *where, backend=backend),))


@pytest.mark.parametrize("wrong", [-1, 9, 2**31 - 1])
def test_indices_out_of_range(backend: str, wrong: int) -> None:
    indices = torch.tensor([0, wrong], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"indices: must lie in \[0, 9\), but entry 1 is"):
        sk.gather_matmul(torch.randn(2, 1, 4), torch.randn(9, 4), indices, torch.tensor([0, 2]), backend=backend)
    with pytest.raises(ValueError, match="offsets: must"):
        sk.gather_matmul(torch.randn(2, 1, 4), torch.randn(9, 4), indices[:1], torch.tensor([0, 2]), backend=backend)
