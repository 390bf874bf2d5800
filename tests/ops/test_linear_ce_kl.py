"""linear_ce_kl on every backend, against float64 log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saekernels as sk
from oracle import same_bits

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def dense(
    h_p: Tensor, h_q: Tensor, W_U: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """CE of both streams and KL in float64, ignored rows included as 0."""

    def log_probabilities(h: Tensor) -> Tensor:
        z = h.double() @ W_U.double().T
        z = z if bias is None else z + bias.double()
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        return z.log_softmax(-1)

    log_p, log_q = log_probabilities(h_p), log_probabilities(h_q)
    counted = targets >= 0
    index = targets.clamp(min=0)[:, None]
    kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    zero = torch.zeros(len(targets), dtype=torch.float64)
    return tuple(
        torch.where(counted, value, zero)
        for value in (-log_p.gather(1, index)[:, 0], -log_q.gather(1, index)[:, 0], kl)
    )  # type: ignore[return-value]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, float | None]:
    T, d = draw(st.sampled_from([0, 1, 2, 9, 70])), draw(st.sampled_from([1, 3, 16, 50]))
    V = draw(st.sampled_from([1, 2, 31, 500, 4111]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    scale = draw(st.sampled_from([0.0, 0.1, 1.0, 5.0]))
    h_p = torch.randn(T, d, generator=generator) * scale
    h_q = h_p + draw(st.sampled_from([0.0, 1e-3, 1.0])) * torch.randn(T, d, generator=generator)
    W_U = torch.randn(V, d, generator=generator)
    targets = torch.randint(0, V, (T,), generator=generator)
    targets[torch.rand(T, generator=generator) < 0.2] = -100
    bias = torch.randn(V, generator=generator) if draw(st.booleans()) else None
    h_p, h_q, W_U = h_p.to(dtype), h_q.to(dtype), W_U.to(dtype)
    if draw(st.booleans()):
        W_U = W_U.T.contiguous().T
    return h_p, h_q, W_U, targets, bias, draw(st.sampled_from([None, 5.0, 30.0]))


@given(problem=problems())
@settings(max_examples=100)
def test_contract(backend: str, problem: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, float | None]) -> None:
    h_p, h_q, W_U, targets, bias, softcap = problem
    got = sk.linear_ce_kl(h_p, h_q, W_U, targets, bias=bias, softcap=softcap, backend=backend)
    ce_p, ce_q, kl = dense(h_p, h_q, W_U, targets, bias, softcap)
    # Logits reach a few hundred here: float32 holds them to a few 1e-5.
    for name, value, expected in (("ce_p", got.ce_p, ce_p), ("ce_q", got.ce_q, ce_q), ("kl", got.kl, kl)):
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value.double(), expected, rtol=2e-6, atol=6e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    ignored = targets == -100
    assert (torch.stack(got)[:, ignored] == 0).all()
    assert (got.kl >= -1e-5).all()


@given(problem=problems(), weights=st.lists(st.sampled_from([0.0, -1.0, 0.5, 2.0]), min_size=3, max_size=3))
@settings(max_examples=60)
def test_gradients(
    backend: str,
    problem: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, float | None],
    weights: list[float],
) -> None:
    """Of all inputs, against float64 autograd."""
    h_p, h_q, W_U, targets, bias, softcap = problem
    inputs = [h_p, h_q, W_U, *([] if bias is None else [bias])]
    grads = torch.tensor(weights)[:, None] * torch.linspace(0.5, 2.0, len(targets))

    def gradients(leaves: list[Tensor], loss: Callable[..., Sequence[Tensor]]) -> Sequence[Tensor]:
        p, q, W, *b = leaves
        losses = torch.stack(list(loss(p, q, W, targets, b[0] if b else None, softcap))[:3])
        return torch.autograd.grad((losses * grads.to(losses.dtype)).sum(), leaves)

    def ours(p: Tensor, q: Tensor, W: Tensor, t: Tensor, b: Tensor | None, cap: float | None) -> sk.LinearCeKl:
        return sk.linear_ce_kl(p, q, W, t, bias=b, softcap=cap, backend=backend)

    got = gradients([value.detach().requires_grad_() for value in inputs], ours)
    want = gradients([value.detach().double().requires_grad_() for value in inputs], dense)
    # A probability is as exact as its logit, some 1e-5 at logits of hundreds, and sums of them may cancel.
    size = {
        "W_U": float(torch.stack([h_p, h_q]).float().norm()),
        "h": float(W_U.float().norm(dim=1).max()) if len(W_U) else 0.0,
    }
    for name, value, expected in zip(("h_p", "h_q", "W_U", "bias"), got, want, strict=False):
        relative = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}[value.dtype]
        noise = relative * float(grads.abs().max() if grads.numel() else 0.0)
        scale = (
            size["W_U"] if name == "W_U" else size["h"] * len(targets) ** 0.5 if name != "bias" else len(targets) ** 0.5
        )
        error = float((value.double() - expected).norm())
        assert error <= relative * float(expected.norm()) + noise * 0.1 * scale, name


@pytest.mark.parametrize("V", [50, 5000])
def test_precise_at_ordinary_logits(backend: str, V: int) -> None:
    """The figure that evaluations add up: 1e-6 nats at logits of order 10, and KL of nearly equal streams."""
    h_p = torch.randn(40, 64) / 8
    h_q = h_p + 1e-3 * torch.randn(40, 64)
    W_U, targets = torch.randn(V, 64) * 3, torch.randint(0, V, (40,))
    got = sk.linear_ce_kl(h_p, h_q, W_U, targets, backend=backend)
    ce_p, ce_q, kl = dense(h_p, h_q, W_U, targets, None, None)
    assert (got.ce_p - ce_p).abs().max() < 3e-6
    assert (got.ce_q - ce_q).abs().max() < 3e-6
    assert (got.kl - kl).abs().max() < 1e-6
    assert sk.linear_ce_kl(h_p, h_p, W_U, targets, backend=backend).kl.abs().max() < 1e-7


def test_top1_agreement_breaks_ties_low(backend: str) -> None:
    W_U = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    h_p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    h_q = torch.tensor([[2.0, 1.0], [1.0, 0.0], [1.0, 1.5]])
    got = sk.linear_ce_kl(h_p, h_q, W_U, torch.zeros(3, dtype=torch.int64), backend=backend)
    assert got.top1_agree.tolist() == [1.0, 0.0, 0.0]


@given(problem=problems(), cut=st.integers(0, 70))
@settings(max_examples=40)
def test_rows_do_not_depend_on_the_batch(
    backend: str, problem: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, float | None], cut: int
) -> None:
    h_p, h_q, W_U, targets, bias, softcap = problem

    def run(rows: slice) -> sk.LinearCeKl:
        return sk.linear_ce_kl(h_p[rows], h_q[rows], W_U, targets[rows], bias=bias, softcap=softcap, backend=backend)

    whole, parts = run(slice(None)), [run(slice(0, cut)), run(slice(cut, None))]
    assert same_bits(whole, tuple(torch.cat(pair) for pair in zip(*parts, strict=True)))


@given(problem=problems(), streams=st.sampled_from([1, 2, 5]), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_streams_have_the_bits_of_pairs(
    backend: str,
    problem: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, float | None],
    streams: int,
    seed: int,
) -> None:
    """Several streams beside one: each as if it were alone."""
    h_p, h_q, W_U, targets, bias, softcap = problem
    generator = torch.Generator().manual_seed(seed)
    many = torch.stack([(h_q + n * torch.randn(h_q.shape, generator=generator)).to(h_q) for n in range(streams)])
    how = {"bias": bias, "softcap": softcap, "backend": backend}
    got = sk.linear_ce_kl(h_p, many, W_U, targets, **how)
    pairs = [sk.linear_ce_kl(h_p, one, W_U, targets, **how) for one in many]
    assert got.ce_q.shape == (streams, len(targets))
    for number, pair in enumerate(pairs):
        assert same_bits((got.ce_p, *(figure[number] for figure in got[1:])), pair)


def test_large_logits_do_not_overflow(backend: str) -> None:
    W_U = torch.tensor([[1e4], [-1e4], [0.0]])
    h = torch.tensor([[3.0], [-3.0]])
    got = sk.linear_ce_kl(h, h.flip(0), W_U, torch.tensor([0, 1]), backend=backend)
    assert got.ce_p.tolist() == [0.0, 0.0]
    assert got.ce_q.tolist() == [6e4, 6e4]
    assert got.kl.tolist() == [6e4, 6e4]


def test_nan_shows(backend: str) -> None:
    h = torch.tensor([[torch.nan], [1.0]])
    W_U = torch.tensor([[1.0], [2.0]])
    got = sk.linear_ce_kl(h, h, W_U, torch.tensor([0, 0]), backend=backend)
    assert got.ce_p.isnan().tolist() == [True, False]
    assert got.kl.isnan().tolist() == [True, False]


def test_impossible_tokens_cost_nothing_in_kl(backend: str) -> None:
    """A bias of -inf, as masked vocabularies have, in both streams: KL is over the rest."""
    bias = torch.tensor([0.0, -torch.inf, 0.0])
    W_U, h_p, h_q = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5, 4)
    rest = torch.tensor([0, 2])
    targets = torch.zeros(5, dtype=torch.int64)
    got = sk.linear_ce_kl(h_p, h_q, W_U, targets, bias=bias, backend=backend)
    expected = sk.linear_ce_kl(h_p, h_q, W_U[rest], targets, backend=backend)
    torch.testing.assert_close(tuple(got[:3]), tuple(expected[:3]))


@pytest.mark.parametrize("wrong", [-1, 9])
def test_targets_out_of_range(backend: str, wrong: int) -> None:
    with pytest.raises(ValueError, match="targets: got"):
        sk.linear_ce_kl(torch.ones(1, 4), torch.ones(1, 4), torch.ones(9, 4), torch.tensor([wrong]), backend=backend)


def test_streams_with_nan_logits_agree_on_nothing(backend: str) -> None:
    h = torch.randn(3, 4)
    h[1, 2] = torch.nan
    got = sk.linear_ce_kl(h, h, torch.randn(7, 4), torch.zeros(3, dtype=torch.int64), backend=backend)
    assert got.top1_agree[[0, 2]].tolist() == [1.0, 1.0]
    assert got.top1_agree[1].isnan()
