"""Bits by hand: entropies, quantisation, water filling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny_lm
from saekernels.eval.studies.controls.bits import (
    CodeLength,
    Histogram,
    ProbeLength,
    Sizes,
    gaussian_bits,
    quantised,
    step_of,
    water_filling,
    which_bits,
)
from saekernels.sae.activations import TopK
from saekernels.sae.module import SAE, ConstantNorm, LayerNorm, Scale
from saekernels.sae.probes import Moments, fit_probes


def binary_entropy(p: float) -> float:
    return 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_which_latents_are_active_by_hand() -> None:
    assert which_bits(torch.tensor([0, 4, 8, 2]), 8) == pytest.approx(0 + 1 + 0 + binary_entropy(0.25))
    assert which_bits(torch.zeros(3, dtype=torch.int64), 0) == 0


def test_a_histogram_is_the_entropy_within_each_class() -> None:
    made = Histogram()
    made.add(torch.tensor([0, 0, 0]), torch.tensor([5, -3, 5]))
    made.add(torch.tensor([0, 7, 7]), torch.tensor([-3, 5, 5]))
    # Class 0: two numbers, twice each; class 7: always the same.
    assert made.bits() == pytest.approx(4 * 1.0)
    assert Histogram().bits() == 0


def by_bisection(variances: Tensor, distortion: float) -> float:
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(variances.clamp_max(middle).sum()) < distortion else (low, middle)
    return sum(max(0.0, 0.5 * math.log2(v / high)) for v in variances.tolist() if v > 0)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 99), zeros=st.integers(0, 3))
def test_water_filling_by_bisection(share: float, seed: int, zeros: int) -> None:
    drawn = torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    variances = torch.cat([drawn, torch.zeros(zeros, dtype=torch.float64)])
    distortion = share * float(variances.sum())
    assert water_filling(variances, distortion) == pytest.approx(by_bisection(variances, distortion), rel=1e-6)


def test_water_filling_by_hand_and_at_its_ends() -> None:
    # Level 1: 1/2 log2 16 + 1/2 log2 4, and nothing for the variance below the level.
    assert water_filling(torch.tensor([16.0, 4.0, 0.5]), 2.5) == pytest.approx(3.0)
    assert water_filling(torch.tensor([1.0, 2.0]), 3.0) == 0
    assert water_filling(torch.tensor([1.0, 2.0]), 0.0) == math.inf
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([4, 2, 1])
    moments = Moments(3)
    moments.add(x)
    spread = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    assert gaussian_bits(moments, 0.1) == pytest.approx(by_bisection(spread, 0.1 * float(spread.sum())))
    assert gaussian_bits(moments, math.nan) is None
    assert gaussian_bits(moments, 0.0) is None


def test_the_step_is_that_of_a_rounding_errors_variance() -> None:
    assert step_of(100.0, 12.0, 0.01) == pytest.approx(1.0)
    assert step_of(1.0, 0.0, 0.01) == 0
    values = np.random.default_rng(0).uniform(-50, 50, 100_000)
    assert np.mean((np.round(values / 0.3) * 0.3 - values) ** 2) == pytest.approx(0.3**2 / 12, rel=0.02)


def fitted(sae: SAE, rows: int = 3000, rise: float = 0.01) -> tuple[CodeLength, Tensor, Tensor]:
    """The code length fitted on and counted over the same random rows x; and the mask."""
    x = torch.randn(rows, sae.d_in, generator=torch.Generator().manual_seed(1))
    touched = torch.arange(rows) % 3 != 0
    out, codes = sae.forward_with_codes(x)
    sizes = Sizes.of(sae.n_latents)
    sizes.add(sae, codes, touched, (x - out)[touched])
    made = CodeLength(sae, sizes, rise)
    made.add(codes, touched)
    return made, x, touched


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "rescaled", "layer norm", "constant norm", "scaled"])
@torch.no_grad()
def test_quantisation_raises_the_error_by_what_was_asked_for(kind: str) -> None:
    torch.manual_seed(0)
    if kind in ("topk", "jumprelu"):
        sae = tiny_lm.sae(0, kind == "jumprelu")
        sae.W_dec.mul_(0.2 + 2 * torch.rand(64, 1))
    else:
        normalizations = {"layer norm": LayerNorm(), "constant norm": ConstantNorm(), "scaled": Scale(3.0)}
        option = {"rescale_by_decoder_norm": kind == "rescaled", "normalization": normalizations.get(kind)}
        sae = SAE(32, 64, TopK(8), **option)  # type: ignore[arg-type]
        sae.W_dec.mul_(0.2 + 2 * torch.rand(64, 1))
    made, x, touched = fitted(sae)
    codes = sae.encode(x)
    rough = quantised(sae, codes, made.step)
    errors = [(x - sae.decode(one))[touched].double().square().sum() for one in (codes, rough)]
    assert float(errors[1] / errors[0]) == pytest.approx(1.01, abs=4e-3)
    unit = made.step if kind == "rescaled" else made.step / sae.W_dec.norm(dim=1)[rough.indices.long()]
    whole = rough.values / unit
    torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-2)


@torch.no_grad()
def test_the_bits_of_codes_from_their_dense_form() -> None:
    sae = tiny_lm.sae(0, jump=True)
    made, x, touched = fitted(sae)
    dense = sae.encode(x).to_dense()[touched].double()
    rates = (dense != 0).double().mean(0)
    which = sum(binary_entropy(p) for p in rates.tolist())
    sizes = dense * sae.W_dec.norm(dim=1)
    octave = (sizes.abs().sum(0) / (dense != 0).sum(0).clamp_min(1) / made.step).clamp_min(1e-9).log2().floor()
    total = 0.0
    for one in octave.unique():
        own = sizes[:, octave == one]
        _, counts = (own[own != 0] / made.step).float().round().unique(return_counts=True)
        share = counts.double() / counts.sum()
        total -= float((counts * share.log2()).sum())
    found = made.figures()
    assert found["which"] == pytest.approx(which, rel=1e-9)
    assert found["values"] == pytest.approx(total / int(touched.sum()), rel=1e-3)
    assert found["total"] == pytest.approx(found["which"] + found["values"])
    l0 = float((dense != 0).sum(1).double().mean())
    assert found["plain"] == pytest.approx(l0 * math.log2(64) + found["values"])


def test_a_probes_coefficients_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2000, 6, generator=generator, dtype=torch.float64) * torch.tensor([5, 3, 2, 1, 1, 1])).float() + 2
    moments = Moments(6)
    moments.add(x)
    covariance = torch.cov(x.double().T, correction=0)
    probe = fit_probes(moments, [2])[2]
    made = ProbeLength(probe, moments, float(covariance.trace()), 0.01)
    values, vectors = torch.linalg.eigh(covariance)
    assert made.step == pytest.approx(math.sqrt(12 * 0.01 * float(values[:4].sum()) / 2), rel=1e-4)
    got = made.add(x, torch.ones(2000, dtype=torch.bool))
    scores = ((x.double() - x.double().mean(0)) @ vectors[:, 4:] / made.step).round()
    bits = 0.0
    for column in scores.T:
        _, counts = column.unique(return_counts=True)
        bits -= float((counts * (counts / 2000).log2()).sum()) / 2000
    assert made.bits() == pytest.approx(bits, rel=2e-3)
    errors = [(one - x).double().square().sum() for one in (probe(x), got)]
    assert float(errors[1] / errors[0]) == pytest.approx(1.01, abs=3e-3)
