"""encode_at on every backend: against float64, against the encoder whose choice it is given, and its gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saekernels as sk
from oracle import same_bits

pytestmark = pytest.mark.usefixtures("poisoned_empty")

Problem = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """x, W_enc, b_enc and pre_bias; vectors in x's dtype or float32."""
    T, d, F = (
        draw(st.sampled_from([0, 1, 5, 33])),
        draw(st.sampled_from([1, 7, 64])),
        draw(st.sampled_from([1, 9, 200])),
    )
    dtype = draw(st.sampled_from(list(EPS)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def vector(size: int) -> Tensor | None:
        kind = draw(st.sampled_from([None, dtype, torch.float32]))
        return None if kind is None else normal(size).to(kind)

    return normal(T, d), normal(F, d), vector(F), vector(d)


def dense(x: Tensor, W: Tensor, b: Tensor | None, p: Tensor | None) -> tuple[Tensor, Tensor]:
    """[T, F] in float64, and the sums of the terms' magnitudes."""
    rows = x.double() if p is None else x.double() - p.double()
    bias = W.new_zeros(len(W), dtype=torch.float64) if b is None else b.double()
    return rows @ W.double().T + bias, rows.abs() @ W.double().abs().T + bias.abs()


@given(problem=problems(), k=st.sampled_from([0, 1, 4]), ragged=st.booleans(), wide=st.booleans())
@settings(max_examples=40)
def test_values_are_those_of_the_dense_encoder(
    backend: str, problem: Problem, k: int, ragged: bool, wide: bool
) -> None:
    x, W, b, p = problem
    counts = torch.randint(0, k + 1, (len(x),)) if ragged else torch.full((len(x),), k)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    indices = torch.randint(0, len(W), (int(counts.sum()),), dtype=torch.int32)
    how = {"pre_bias": p, "wide": wide, "backend": backend}
    got = sk.encode_at(x, W, b, indices, offsets, **how)
    rows = torch.repeat_interleave(torch.arange(len(x)), counts)
    want, size = (table[rows, indices.long()] for table in dense(*problem))
    eps = EPS[torch.float32] * (x.shape[1] + 3) + (0 if wide else EPS[x.dtype])
    assert got.dtype == (torch.float32 if wide else x.dtype)
    assert bool(((got.double() - want).abs() <= eps * size + 1e-6).all())
    if not ragged:
        square = sk.encode_at(x, W, b, indices.reshape(len(x), k).long(), **how)
        assert same_bits((square.reshape(-1),), (got,))


@given(problem=problems(), wide=st.booleans())
@settings(max_examples=20)
def test_at_an_encoders_choice_it_has_its_values(backend: str, problem: Problem, wide: bool) -> None:
    """In float32 the same bits on the CPU's backends, else the same to rounding."""
    x, W, b, p = problem
    how = {"pre_bias": p, "wide": wide, "backend": backend}
    values, indices = sk.encode_topk(x, W, b, k=min(3, len(W)), activation="none", **how)
    got = sk.encode_at(x, W, b, indices, **how)
    if x.dtype == torch.float32 and backend == "cpu":
        assert same_bits((got,), (values,))
    _, size = dense(*problem)
    eps = 2 * (EPS[torch.float32] * (x.shape[1] + 3) + (0 if wide else EPS[x.dtype]))
    assert bool(((got.double() - values.double()).abs() <= eps * size.gather(1, indices.long()) + 1e-6).all())


def test_gradients_are_those_of_the_dense_encoder(backend: str) -> None:
    close = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
    for dtype in (*close, *([torch.float64] if backend == "reference" else [])):
        x, W, b, p = (torch.randn(*shape).to(dtype).requires_grad_() for shape in ((2, 5, 6), (9, 6), (9,), (6,)))
        indices, weights = torch.randint(0, 9, (2, 5, 3)), torch.randn(2, 5, 3).to(dtype)
        values = sk.encode_at(x, W, b, indices, pre_bias=p, backend=backend)
        got = torch.autograd.grad((values * weights).sum(), (x, W, b, p))
        leaves = [one.detach().double().requires_grad_() for one in (x, W, b, p)]
        wide = (leaves[0] - leaves[3]) @ leaves[1].T + leaves[2]
        want = torch.autograd.grad((wide.gather(-1, indices) * weights.double()).sum(), leaves)
        for mine, other in zip(got, want, strict=True):
            assert mine.dtype == dtype
            tolerance = close.get(dtype, 1e-12)
            torch.testing.assert_close(mine.double(), other, rtol=tolerance, atol=tolerance)


def test_second_gradients() -> None:
    x, W, b, p = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (7, 4), (7,), (4,))
    )
    indices, offsets = torch.tensor([6, 0, 0, 2]), torch.tensor([0, 1, 1, 4])

    def at(x: Tensor, W: Tensor, b: Tensor, p: Tensor) -> Tensor:
        return sk.encode_at(x, W, b, indices, offsets, pre_bias=p)

    assert torch.autograd.gradcheck(at, (x, W, b, p))
    assert torch.autograd.gradgradcheck(at, (x, W, b, p))


X, W, AT = torch.randn(3, 8), torch.randn(20, 8), torch.zeros(3, 2, dtype=torch.int64)
OFFSETS = torch.tensor([0, 2, 4, 6])
REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: sk.encode_at(None, W, None, AT), TypeError, "x: got NoneType, need a torch.Tensor"),
    (lambda: sk.encode_at(X, W.half(), None, AT), TypeError, "W_enc: got dtype float16, need float32, that of x"),
    (lambda: sk.encode_at(X, W, None, AT.float()), TypeError, "indices: got dtype float32, need one of int32, int64"),
    (lambda: sk.encode_at(X, W, None, AT[:2]), ValueError, r"indices: got shape \[2, 2\], need \[..., k\] = \[3, k\]"),
    (lambda: sk.encode_at(X, W, None, AT + 20), ValueError, r"indices: must lie in \[0, 20\), but entry 0 is 20"),
    (lambda: sk.encode_at(X, W, W[:3, 0], AT), ValueError, r"b_enc: got shape \[3\], need \[F\] = \[20\]"),
    (lambda: sk.encode_at(X, W, None, AT.view(-1), OFFSETS[:3]), ValueError, r"x: got shape \[3, 8\], need \[T, d\]"),
    (lambda: sk.encode_at(X, W, None, AT.view(-1), torch.tensor([0, 2, 1, 6])), ValueError, "offsets: "),
    (lambda: sk.encode_at(X, W, None, AT, wide=1), TypeError, "wide: got 1, need bool"),
    (lambda: sk.encode_at(X, W, None, AT, backend="tpu"), ValueError, "backend: got 'tpu'"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_wrong_arguments_are_named(number: int) -> None:
    call, kind, message = REFUSED[number]
    with pytest.raises(kind, match=message):
        call()
