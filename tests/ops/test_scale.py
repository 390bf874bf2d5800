"""The encoders' scale, on every backend: what is compared is a pre-activation times it, what comes back is itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saekernels as sk
from cases import Case, encoder_cases, integer_cases
from oracle import order, same_bits

pytestmark = pytest.mark.usefixtures("poisoned_empty")
ACTIVATIONS = st.sampled_from(["relu", "none", "abs"])
# Of one binade and of many; "uneven" products round, the others are exact.
SCALES = st.sampled_from(["uneven", "powers", "one", "tiny", "huge", "odd"])


def scale_of(kind: str, F: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(F)
    powers = torch.randint(-3, 4, (F,), generator=generator).float()
    made = {
        "uneven": torch.rand(F, generator=generator) * 2 + 0.05,
        "powers": 2**powers,
        "one": torch.ones(F),
        "tiny": 1e-30 * (torch.rand(F, generator=generator) + 0.5),
        "huge": 1e25 * (torch.rand(F, generator=generator) + 0.5),
        "odd": torch.ones(F),
    }[kind]
    if kind == "odd":  # what no bound can be given for, among what has one
        at = torch.arange(0, F, max(1, F // 3))
        made[at] = torch.tensor([torch.nan, torch.inf, 1e-38, 3e38])[torch.arange(len(at)) % 4]
    return made.to(dtype)


def every_score(case: Case, encoder: str, *, listed: bool = False) -> Tensor:
    """[T, F] float32: all pre-activations as the backend sums them, from the unscaled op, which other tests hold.

    listed: as those above thresholds are summed, on Triton in another order than all at once.
    """
    T, F = case.x.shape[0], case.W.shape[0]
    if listed and encoder == "triton":
        every = torch.full((T, F), -torch.inf)
        for start in range(0, F, 1000):
            part, bias = case.W[start : start + 1000], None if case.b is None else case.b[start : start + 1000]
            codes = sk.encode_threshold(
                case.x, part, bias, -torch.inf, pre_bias=case.pre_bias, wide=True, backend=encoder
            )
            every[torch.arange(T).repeat_interleave(codes.offsets.diff()), start + codes.indices.long()] = codes.values
        return every
    options: dict[str, Any] = {"pre_bias": case.pre_bias, "activation": "none", "backend": encoder}
    got = sk.encode_topk(case.x, case.W, case.b, k=F, wide=True, **options)
    return torch.empty(T, F).scatter(1, got.indices.long(), got.values)


def check_best(case: Case, encoder: str, activation: str, scale: Tensor, **options: Any) -> None:
    """Bit for bit: the order of the products rounded once, the values that are not multiplied."""
    pre = every_score(case, encoder)
    compared = pre * scale.float()
    chosen = order(compared.abs() if activation == "abs" else compared)[:, : case.k]
    want = pre.gather(1, chosen)
    want = want.relu() if activation == "relu" else want
    got = sk.encode_topk(
        case.x, case.W, case.b, k=case.k, pre_bias=case.pre_bias, scale=scale, activation=activation,
        backend=encoder, **options,
    )  # fmt: skip
    assert torch.equal(got.indices.long(), chosen)
    torch.testing.assert_close(got.values, want.to(got.values.dtype), rtol=0, atol=0, equal_nan=True)
    if case.kind == "integers":
        assert not torch.signbit(got.values[got.values == 0]).any(), "a negative zero"


def check_above(case: Case, encoder: str, scale: Tensor, threshold: Tensor | float, **options: Any) -> None:
    pre = every_score(case, encoder, listed=True)
    compared = pre * scale.float()
    kept = (compared > torch.as_tensor(threshold).float()) | compared.isnan()
    got = sk.encode_threshold(
        case.x, case.W, case.b, threshold, pre_bias=case.pre_bias, scale=scale, backend=encoder, **options
    )
    assert torch.equal(got.indices.long(), kept.nonzero()[:, 1])
    assert torch.equal(got.offsets.diff(), kept.sum(1))
    torch.testing.assert_close(got.values, pre[kept].to(case.x.dtype), rtol=0, atol=0, equal_nan=True)


@given(case=encoder_cases(), activation=ACTIVATIONS, kind=SCALES, narrow=st.booleans())
@settings(max_examples=30)
def test_the_best_by_scaled_scores(encoder: str, case: Case, activation: str, kind: str, narrow: bool) -> None:
    dtype = case.x.dtype if narrow and kind in ("uneven", "powers", "one") else torch.float32
    check_best(case, encoder, activation, scale_of(kind, case.W.shape[0], dtype))


@given(case=integer_cases(), activation=ACTIVATIONS, kind=SCALES)
@settings(max_examples=30)
def test_ties_and_special_values(encoder: str, case: Case, activation: str, kind: str) -> None:
    check_best(case, encoder, activation, scale_of(kind, case.W.shape[0]), wide=True)


@given(case=encoder_cases(), kind=SCALES, level=st.sampled_from([-1.0, 0.0, 0.7]), scalar=st.booleans())
@settings(max_examples=30)
def test_above_the_threshold_by_scaled_scores(encoder: str, case: Case, kind: str, level: float, scalar: bool) -> None:
    threshold = level if scalar else torch.linspace(level - 1, level + 1, case.W.shape[0])
    check_above(case, encoder, scale_of(kind, case.W.shape[0]), threshold)


@given(case=integer_cases(), kind=SCALES, level=st.sampled_from([-2.0, 0.0, 1.0]))
@settings(max_examples=20)
def test_exact_at_the_threshold(encoder: str, case: Case, kind: str, level: float) -> None:
    check_above(case, encoder, scale_of(kind, case.W.shape[0]), level)


@pytest.mark.parametrize("kind", ["uneven", "powers", "tiny", "huge", "odd"])
@pytest.mark.parametrize("prepared", [False, True])
def test_many_latents(encoder: str, kind: str, prepared: bool) -> None:
    """Several tiles of latents for every screen, as they come and prepared."""
    case = Case(torch.randn(24, 72), torch.randn(1700, 72), torch.randn(1700), torch.randn(72), 9, kind)
    made = {"prepared": sk.prepare(case.W)} if prepared else {}
    scale = scale_of(kind, 1700)
    for activation in ("relu", "abs"):
        check_best(case, encoder, activation, scale, **made)
    size = float(scale[scale.isfinite()].median()) * 12
    check_above(case, encoder, scale, size, **made)
    check_above(case, encoder, scale, torch.linspace(-0.1, 3, 1700) * size, **made)


def test_ones_change_no_bit(encoder: str) -> None:
    x, W, b, ones = torch.randn(40, 32), torch.randn(900, 32), torch.randn(900), torch.ones(900)
    plain = sk.encode_topk(x, W, b, k=12, backend=encoder)
    assert same_bits(plain, sk.encode_topk(x, W, b, k=12, scale=ones, backend=encoder))
    plain = sk.encode_threshold(x, W, b, 5.0, backend=encoder)
    assert same_bits(plain, sk.encode_threshold(x, W, b, 5.0, scale=ones, backend=encoder))


def test_gradients_are_those_of_the_entries(backend: str) -> None:
    """Of the values, which the scale does not multiply; the scale chooses, and has none."""
    x, W, b, p = (torch.randn(*shape, requires_grad=True) for shape in ((6, 8), (50, 8), (50,), (8,)))
    scale = torch.rand(50, requires_grad=True)
    pre = (x - p) @ W.T + b
    compared = (pre * scale).detach()
    chosen = compared.argsort(1, descending=True)[:, :7]
    for ours, dense in (
        (sk.encode_topk(x, W, b, k=7, pre_bias=p, scale=scale, backend=backend).values, pre.gather(1, chosen).relu()),
        (sk.encode_threshold(x, W, b, 0.5, pre_bias=p, scale=scale, backend=backend).values, pre[compared > 0.5]),
    ):
        weights = torch.randn_like(dense)
        got = torch.autograd.grad((ours * weights).sum(), (x, W, b, p, scale), allow_unused=True)
        want = torch.autograd.grad((dense * weights).sum(), (x, W, b, p), retain_graph=True)
        assert got[-1] is None
        for one, other in zip(got, want, strict=False):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
