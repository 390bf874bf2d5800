"""One step of Adam is its formula, on every backend: against float64, within what float32 may round."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oracle import UNIT_ROUNDOFF, rounding, same_bits, wide
from saekernels.backends import registry
from saekernels.backends.adam_step import AdamStep

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]  # parameter, gradient and moments, [n, d] each


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensors, AdamStep]:
    n, d, seed = draw(st.integers(1, 70)), draw(st.integers(1, 70)), draw(st.integers(0, 2**16))
    dtype = draw(st.sampled_from((torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)))
    generator = torch.Generator().manual_seed(seed)
    p, g, m = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(3))
    p[draw(st.integers(0, n - 1))] = 0
    tensors = [one.to(dtype) for one in (p, g, m, torch.rand(n, d, generator=generator))]
    if draw(st.booleans()):
        tensors = [one.T.contiguous().T for one in tensors]
    t, lr, beta1, beta2 = draw(st.integers(1, 100)), draw(st.sampled_from((1.0, 1e-2))), 0.9, 0.99
    if draw(st.booleans()):
        beta1 = 0.0
    numbers = AdamStep(
        scale=draw(st.sampled_from((1.0, 0.37, -1.0, 0.0))),
        decay=draw(st.sampled_from((0.0, 0.1))),
        shrink=draw(st.sampled_from((1.0, 0.99))),
        beta1=beta1,
        beta2=beta2,
        step_size=lr / (1 - beta1**t),
        root=(1 - beta2**t) ** 0.5,
        eps=1e-8,
        project=draw(st.booleans()),
        unit_norm=draw(st.booleans()),
    )
    return (tensors[0], tensors[1], tensors[2], tensors[3]), numbers


def expected(tensors: Tensors, step: AdamStep) -> dict[str, tuple[Tensor, Tensor]]:
    """(value, bound on its error) of what is changed: sums of d terms, and some ten operations, rounded each time."""
    p, g, m, v = (one.double() for one in tensors)
    dtype, d = tensors[0].dtype, p.shape[1]
    u = UNIT_ROUNDOFF[wide(tensors[0])]
    g, size = step.scale * g, abs(step.scale) * g.abs()
    if step.project:
        squares = p.square().sum(1, keepdim=True).clamp(min=1e-300)
        along = (g * p).sum(1, keepdim=True) / squares
        g, size = g - along * p, size + (d + 4) * (g * p).abs().sum(1, keepdim=True) / squares * p.abs()
    g, size = g + step.decay * p, size + step.decay * p.abs()
    mean = step.beta1 * m + (1 - step.beta1) * g
    size_mean = step.beta1 * m.abs() + (1 - step.beta1) * size
    square = step.beta2 * v + (1 - step.beta2) * g * g
    size_square = step.beta2 * v + (1 - step.beta2) * size * size
    denominator = square.sqrt() / step.root + step.eps
    moved = step.shrink * p - step.step_size * mean / denominator
    wrong = p.abs() + step.step_size * (size_mean / denominator + mean.abs() * size_square / (square * denominator))
    if step.unit_norm:
        norms = moved.square().sum(1, keepdim=True).sqrt()
        norms = torch.where(norms == 0, 1.0, norms)
        moved, wrong = moved / norms, wrong / norms + wrong.norm(dim=1, keepdim=True) / norms + d * moved.abs() / norms
    found = {"param": (moved, wrong), "exp_avg": (mean, size_mean), "exp_avg_sq": (square, size_square)}
    return {name: (value, 12 * u * bound + rounding(value, dtype)) for name, (value, bound) in found.items()}


@given(case=cases())
def test_a_step_is_the_formula(backend: str, case: tuple[Tensors, AdamStep]) -> None:
    tensors, step = case
    if registry.refusal(backend, "adam_step", "cpu", tensors[0].dtype) is not None:
        return
    want = expected(tensors, step)
    p, g, m, v = (one.clone() for one in tensors)
    registry.load(backend).adam_step(p, g, m, v, step)
    assert same_bits((g,), (tensors[1],)), "the gradient stays"
    for got, (name, (value, bound)) in zip((p, m, v), want.items(), strict=True):
        worst = float(((got.double() - value).abs() / bound).max())
        assert worst <= 1, f"{name}: {worst} times the bound"


def test_rows_of_zeros_have_no_part_along_them_and_stay(backend: str) -> None:
    p, g, m, v = torch.zeros(3, 5), torch.zeros(3, 5), torch.zeros(3, 5), torch.ones(3, 5)
    g[1] = 2
    step = AdamStep(1.0, 0.0, 1.0, 0.0, 0.5, 1.0, 1.0, 0.0, project=True, unit_norm=True)
    registry.load(backend).adam_step(p, g, m, v, step)
    assert p[[0, 2]].abs().max() == 0
    torch.testing.assert_close(p[1], torch.full((5,), -(5**-0.5)))
    assert m[1].tolist() == [2.0] * 5
    assert v.tolist() == [[0.5] * 5, [2.5] * 5, [0.5] * 5]


def test_a_step_by_hand(backend: str) -> None:
    p, g = torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0]])
    m, v = torch.tensor([[1.0, -1.0]]), torch.tensor([[4.0, 1.0]])
    # 2 g = (10, 0); <2 g, p> / <p, p> = 30 / 25; at right angles (6.4, -4.8); m (3.7, -2.9); v (13.24, 6.51).
    step = AdamStep(2.0, 0.0, 1.0, 0.5, 0.75, 1.0, 0.5, 0.0, project=True)
    registry.load(backend).adam_step(p, g, m, v, step)
    torch.testing.assert_close(m, torch.tensor([[3.7, -2.9]]))
    torch.testing.assert_close(v, torch.tensor([[13.24, 6.51]]))
    torch.testing.assert_close(p, torch.tensor([[3 - 3.7 * 0.5 / 13.24**0.5, 4 + 2.9 * 0.5 / 6.51**0.5]]))
