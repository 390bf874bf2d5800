"""linear_ce_kl and its gradients as Triton kernels, in the interpreter, against the reference and float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oracle import same_bits
from saekernels.backends import reference
from triton_cases import DTYPES, module, skip_unless_interpreting

skip_unless_interpreting()
from saekernels.backends.triton import linear_ce_kl, linear_ce_kl_backward  # noqa: E402
from saekernels.backends.triton.configs import Config, override  # noqa: E402

# Of a gradient's norm. float16: tf32 products, and the result's own rounding.
ALLOWED = {torch.float32: 3e-6, torch.float16: 5e-4}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("V", "softcap"), [(1300, None), (1300, 20.0), (31, None)])
def test_linear_ce_kl(dtype: torch.dtype, V: int, softcap: float | None) -> None:
    T, d = 21, 37
    h_p, W, bias = torch.randn(T, d).to(dtype), torch.randn(V, d).to(dtype), torch.randn(V).to(dtype)
    h_q = (h_p + 0.3 * torch.randn(T, d)).to(dtype)
    targets = torch.randint(0, V, (T,))
    targets[1], h_q[5], h_p[7] = -100, torch.nan, 0
    bias[4] = -torch.inf
    targets[targets == 4] = 5
    for b in (bias, None):
        got = linear_ce_kl(h_p, h_q, W, targets, b, softcap, -100)
        want = reference.linear_ce_kl(h_p, h_q, W, targets, b, softcap, -100)
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5, equal_nan=True)


def test_a_small_kl_keeps_its_digits() -> None:
    h_p, W = torch.randn(9, 64), torch.randn(5000, 64)
    h_q = h_p + 1e-3 * torch.randn(9, 64)
    _, _, kl, _ = linear_ce_kl(h_p, h_q, W, torch.zeros(9, dtype=torch.int64), None, None, -100)
    exact = reference.linear_ce_kl(
        h_p.double(), h_q.double(), W.double(), torch.zeros(9, dtype=torch.int64), None, None, -100
    )[2]
    torch.testing.assert_close(kl.double(), exact, rtol=2e-3, atol=5e-7)


@pytest.mark.slow
def test_streams_have_the_bits_of_pairs() -> None:
    """Two of them against one, over two parts of the vocabulary and two tiles of rows."""
    h_p, h_q, W = torch.randn(35, 16), torch.randn(2, 35, 16), torch.randn(1100, 16)
    targets = torch.randint(0, 1100, (35,))
    got = linear_ce_kl(h_p, h_q, W, targets, None, None, -100)
    assert got[1].shape == (2, 35)
    for number, stream in enumerate(h_q):
        pair = linear_ce_kl(h_p, stream, W, targets, None, None, -100)
        assert same_bits((got[0], *(figure[number] for figure in got[1:])), pair)


def test_certain_tokens_and_ties() -> None:
    """Losses of exactly 0 and 60,000, and the first of equal logits, wherever in a row the others are."""
    W = torch.tensor([[1e4], [-1e4], [0.0]])
    h = torch.tensor([[3.0], [-3.0]])
    ce_p, ce_q, kl, agree = linear_ce_kl(h, h.flip(0), W, torch.tensor([0, 1]), None, None, -100)
    assert [ce_p.tolist(), ce_q.tolist(), kl.tolist(), agree.tolist()] == [[0, 0], [6e4, 6e4], [6e4, 6e4], [0, 0]]
    pairs = [(0, 1), (1, 2), (2, 8), (7, 64), (9, 129), (64, 65), (63, 64), (127, 128)]
    W, h_p, h_q = torch.zeros(130, 32), torch.zeros(len(pairs), 32), torch.zeros(2, len(pairs), 32)
    for row, (first, second) in enumerate(pairs):
        at = 3 * row
        W[[first, second], at], W[first, at + 1], W[second, at + 2] = 1.0, 1.0, 1.0
        h_p[row, at], h_q[0, row, [at, at + 1]], h_q[1, row, [at, at + 2]] = 1.0, 1.0, 1.0
    agree = linear_ce_kl(h_p, h_q, W, torch.zeros(len(pairs), dtype=torch.int64), None, None, -100)[3]
    assert agree.tolist() == [[1.0] * len(pairs), [0.0] * len(pairs)]


def head(T: int, d: int, V: int, dtype: torch.dtype, *, biased: bool) -> dict[str, Any]:
    """Logits of about 2; the second row is ignored, and NaN in a stream."""
    h_p, targets = torch.randn(T, d), torch.randint(0, V, (T,))
    h_q = h_p + 0.3 * torch.randn(T, d)
    if T > 1:
        targets[1], h_q[1] = -100, torch.nan
    W = torch.randn(V, d) * 2 * d**-0.5
    bias = torch.randn(V) if biased else None
    return {"h_p": h_p.to(dtype), "h_q": h_q.to(dtype), "W_U": W.to(dtype), "targets": targets, "bias": bias}


def gradients(backend: Any, of: dict[str, Any], grads: Tensor, softcap: float | None, needs: Any) -> tuple[Tensor, ...]:
    """Backward through the reference's losses."""
    losses = reference.linear_ce_kl(**of, softcap=softcap, ignore_index=-100)[:3]
    need_h, need_W, need_bias = needs
    return backend(*grads, *losses, **of, softcap=softcap, ignore_index=-100, need_h=need_h, need_W=need_W,
                   need_bias=need_bias)  # fmt: skip


def exact(of: dict[str, Any], grads: Tensor, softcap: float | None) -> tuple[Tensor, ...]:
    """In float64; of the bias, as if it were zeros where there is none."""
    wide = {name: value.double() if name != "targets" and value is not None else value for name, value in of.items()}
    return gradients(reference.linear_ce_kl_backward, wide, grads.double(), softcap, (True, True, True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("T", "d", "V", "biased", "softcap"),
    [(21, 37, 300, True, None), (5, 32, 257, False, 3.0), (34, 64, 31, True, 20.0), (1, 1, 2, False, None)],
)
def test_gradients_are_those_of_float64(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, T: int, d: int, V: int, biased: bool, softcap: float | None
) -> None:
    """Of three slabs of the vocabulary, the last ragged."""
    monkeypatch.setattr(module("loss.linear_ce_kl_backward"), "SLAB", 128)
    of, grads = head(T, d, V, dtype, biased=biased), torch.randn(3, T)
    got, want = gradients(linear_ce_kl_backward, of, grads, softcap, (True, True, True)), exact(of, grads, softcap)
    assert [value.dtype for value in got] == [dtype] * 3 + [torch.float32 if biased else dtype]
    for name, value, expected in zip(("h_p", "h_q", "W_U", "bias"), got, want, strict=True):
        error = float((value.double() - expected).norm()) / max(float(expected.norm()), 1e-30)
        assert error < ALLOWED[value.dtype if name == "bias" else dtype], (name, error)
    assert not got[0][of["targets"] == -100].any()
    assert not got[1][of["targets"] == -100].any()


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_only_what_is_needed(needs: tuple[bool, bool, bool]) -> None:
    of, grads = head(9, 20, 70, torch.float32, biased=True), torch.randn(3, 9)
    some = gradients(linear_ce_kl_backward, of, grads, None, needs)
    every = gradients(linear_ce_kl_backward, of, grads, None, (True, True, True))
    for needed, value, expected in zip((needs[0], *needs), some, every, strict=True):
        assert same_bits((value,), (expected,)) if needed else value.numel() == 0


def test_a_rows_gradient_has_the_same_bits_in_any_batch_and_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    of, grads = head(40, 24, 300, torch.float32, biased=False), torch.randn(3, 40)
    monkeypatch.setattr(module("loss.linear_ce_kl_backward"), "SLAB", 128)
    # A BLAS may sum a row in another order where it lies elsewhere in a tile; tensor cores do not.
    monkeypatch.setattr(np, "matmul", lambda a, b, dtype: np.einsum("ij,jk->ik", a, b, dtype=dtype))
    whole = gradients(linear_ce_kl_backward, of, grads, None, (True, False, False))[:2]
    for rows in (slice(0, 1), slice(13, 31)):
        part = {**of, **{name: of[name][rows] for name in ("h_p", "h_q", "targets")}}
        got = gradients(linear_ce_kl_backward, part, grads[:, rows], None, (True, False, False))[:2]
        assert same_bits(got, tuple(value[rows] for value in whole))


def test_targets_that_cannot_be_are_summed_again() -> None:
    """A bias of -inf at a target: its cross-entropy is infinite, p - [target] is not."""
    of, grads = head(9, 20, 300, torch.float32, biased=True), torch.randn(3, 9)
    of["bias"][[3, 120, 299]] = -math.inf
    of["targets"][4] = 120
    got = gradients(linear_ce_kl_backward, of, grads, None, (True, True, True))
    want = exact({**of, "bias": of["bias"].clamp(min=-1e4)}, grads, None)
    for value, expected in zip(got, want, strict=True):
        assert value.isfinite().all()
        assert float((value.double() - expected).norm()) < 3e-6 * float(expected.norm())
    assert not got[2][[3, 299]].any()


def test_nan_stays_with_its_row() -> None:
    of, grads = head(20, 24, 100, torch.float32, biased=False), torch.ones(3, 20)
    of["h_p"][5, 3] = math.nan
    d_hp, d_hq, d_W, _ = gradients(linear_ce_kl_backward, of, grads, None, (True, True, False))
    assert d_hp.isnan().all(1).tolist() == [row == 5 for row in range(20)]
    assert d_hq.isnan().any(1).tolist() == [row == 5 for row in range(20)]
    assert d_W.isnan().all()


@pytest.mark.parametrize("ignored", [-100, 3])
def test_no_rows_and_none_that_counts(ignored: int) -> None:
    """Also where a word is what is ignored, and where a logit of an ignored row is far above all."""
    for T in (0, 4):
        of = head(T, 8, 30, torch.float32, biased=True)
        of["targets"], of["bias"][7] = torch.full((T,), ignored), 200.0
        losses = [torch.zeros(T)] * 3
        got = linear_ce_kl_backward(*torch.ones(3, T), *losses, **of, softcap=None, ignore_index=ignored,
                                    need_h=True, need_W=True, need_bias=True)  # fmt: skip
        assert [tuple(value.shape) for value in got] == [(T, 8), (T, 8), (30, 8), (30,)]
        assert [float(value.abs().sum()) for value in got] == [0.0] * 4


@pytest.mark.parametrize("columns", [64, 128])
def test_tiles_change_nothing_but_rounding(columns: int) -> None:
    """A bias or a depth that no tile divides halves the words of wide tiles."""
    of = head(5, 64, 300, torch.float32, biased=False)
    with override("linear_ce_kl", Config(16, columns, 32, 4, 1)):
        got = linear_ce_kl(**of, softcap=None, ignore_index=-100)
    want = reference.linear_ce_kl(**of, softcap=None, ignore_index=-100)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-6)
