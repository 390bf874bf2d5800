"""How many bits a reconstruction takes: which latents, and their values at a precision that the error hardly notices.

The formula is that of MDL-SAEs (Ayonrinde, Pearce and Sharkey 2024, arXiv 2410.11179): the entropy of each latent's
quantised value, zeros included, summed over the latents. docs/explanation/evaluation.md has it in full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.eval.studies.site_passes import entries_of, weights_of
from saekernels.sae.codes import Codes
from saekernels.sae.probes import AffineProbe, Moments

_KEY = 2**40
# Octaves of the mean size of a latent's values, in steps, and one more for latents without any.
_CLASSES = 64


def step_of(error: float, load: float, rise: float) -> float:
    """The step of uniform quantisation that raises a squared error by this share of it, by rounding errors' variance.

    error: sum of squared errors; load: sum over tokens of the quantised numbers, each times the square of what one unit
    of it moves the output. step^2 / 12 is the variance of a rounding error. 0 for nothing to quantise or no error.
    """
    return math.sqrt(12 * rise * error / load) if load > 0 else 0.0


class Histogram:
    """Counts of whole numbers within classes."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def add(self, classes: Tensor, numbers: Tensor) -> None:
        """classes, numbers [n] int64; numbers between -2^39 and 2^39."""
        keys, counts = torch.unique(classes * _KEY + numbers + _KEY // 2, return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            self.counts[key] = self.counts.get(key, 0) + count

    def bits(self) -> float:
        """The entropy of all numbers that were added, each given its class, in bits altogether."""
        totals: dict[int, int] = {}
        for key, count in self.counts.items():
            totals[key // _KEY] = totals.get(key // _KEY, 0) + count
        return sum(count * math.log2(totals[key // _KEY] / count) for key, count in self.counts.items())


def which_bits(counts: Tensor, tokens: int) -> float:
    """Bits per token to say which latents are active: the sum of the binary entropies of their rates.

    counts [F]: tokens of `tokens` at which each is active.
    """
    rates = counts.double() / max(1, tokens)
    both = torch.special.entr(rates) + torch.special.entr(1 - rates)
    return float(both.sum()) / math.log(2)


def water_filling(variances: Tensor, distortion: float) -> float:
    """Bits per token of a Gaussian with these variances at a mean squared error (reverse water-filling).

    Variances [d] below the water level theta get no bits, the others log2(variance / theta) / 2; the level is where the
    errors, min(theta, variance), add up to the distortion.
    """
    ordered = variances.double().clamp_min(0).sort().values
    if distortion >= float(ordered.sum()):
        return 0.0
    if distortion <= 0:
        return math.inf
    below = torch.nn.functional.pad(ordered.cumsum(0), (1, 0))[:-1]
    levels = (distortion - below) / torch.arange(len(ordered), 0, -1)
    # The level that leaves exactly the variances before it below itself.
    level = levels[torch.nonzero(levels <= ordered)[0, 0]]
    return float(0.5 * (ordered / level).log2().clamp_min(0).sum())


@dataclass
class Sizes:
    """What an SAE's values weigh over the tokens that it is fitted on: sums for its step and its latents' classes."""

    error: float
    load: float
    size: Tensor
    count: Tensor

    @classmethod
    def of(cls, n_latents: int) -> Sizes:
        """Nothing yet."""
        return cls(0.0, 0.0, torch.zeros(n_latents, dtype=torch.float64), torch.zeros(n_latents, dtype=torch.int64))

    def add(self, sae: Any, codes: Codes, touched: Tensor, error: Tensor) -> None:
        """codes [..., F] and touched [...] of one batch; error [n, d_out] at the touched positions."""
        rows, latents, values = entries_of(codes, touched)
        own = values * weights_of(sae)[latents.to(values.device)]
        scale = torch.ones(1) if codes.scale is None else codes.scale.cpu()
        scale = scale.expand(*codes.shape, 1).reshape(-1)
        self.error += float(error.double().square().sum())
        self.load += float(scale.double()[rows].square().sum())
        self.size.index_add_(0, latents, own.abs().double().cpu())
        self.count += torch.bincount(latents, minlength=len(self.count))

    def classes(self, step: float) -> Tensor:
        """[F] int64: the octave of a latent's mean size in steps; one of its own for latents without any."""
        mean = self.size / self.count.clamp_min(1) / max(step, 1e-300)
        octave = mean.clamp_min(1e-300).log2().floor().clamp(-1, _CLASSES - 2).long() + 1
        return torch.where(self.count > 0, octave, _CLASSES)


def quantised(sae: Any, codes: Codes, step: float) -> Codes:
    """The codes with values rounded to multiples of the step, in units of what they move the output."""
    if not step:
        return codes
    unit = (step / weights_of(sae).clamp_min(1e-30))[codes.indices.long()].to(codes.values)
    return replace(codes, values=(codes.values / unit).round() * unit)


class CodeLength:
    """The bits of an SAE's codes over the measured tokens."""

    def __init__(self, sae: Any, sizes: Sizes, rise: float) -> None:
        self.step = step_of(sizes.error, sizes.load, rise)
        self.sae, self.classes = sae, sizes.classes(self.step)
        self.values, self.tokens = Histogram(), 0
        self.active = torch.zeros(len(sizes.count), dtype=torch.int64)

    def add(self, codes: Codes, touched: Tensor) -> None:
        """codes [..., F] and touched [...] of one batch."""
        _, latents, values = entries_of(codes, touched)
        own = (values.float() * weights_of(self.sae)[latents.to(values.device)]).cpu()
        self.tokens += int(touched.sum())
        self.active += torch.bincount(latents, minlength=len(self.active))
        if self.step:
            self.values.add(self.classes[latents], (own / self.step).round().long())

    def figures(self) -> dict[str, float]:
        """Bits per token: which latents, their values, both; and the plain code of MDL-SAEs' bound for the same."""
        tokens = max(1, self.tokens)
        which, values = which_bits(self.active, tokens), self.values.bits() / tokens
        plain = float(self.active.sum()) / tokens * math.log2(len(self.active)) + values
        return {"which": which, "values": values, "total": which + values, "plain": plain}


class ProbeLength:
    """The bits of the coefficients of an affine probe, each with its own code, over the measured tokens."""

    def __init__(self, probe: AffineProbe, moments: Moments, spread: float, rise: float) -> None:
        """moments: of the rows that it was fitted on; spread: the variance of what it reconstructs, all columns."""
        W_enc, self.unit = probe.W_enc.double().cpu(), probe.W_dec.norm(dim=1).clamp_min(1e-30)
        covariance = moments.xx / moments.count - torch.outer(moments.mean_in, moments.mean_in)
        scores = torch.einsum("ri,ij,rj->r", W_enc, covariance, W_enc)
        left = max(0.0, spread - float((scores * self.unit.double().cpu().square()).sum()))
        self.probe, self.step = probe, step_of(left, len(W_enc), rise)
        self.values, self.tokens = Histogram(), 0

    def add(self, x: Tensor, touched: Tensor) -> Tensor:
        """The quantised reconstruction [..., d_out] of x [..., d_in]; counts the bits of touched positions [...]."""
        scores = (x.float() - self.probe.mean_in) @ self.probe.W_enc.T * self.unit
        if self.step:
            scores = (scores / self.step).round()
            own = scores[touched.to(scores.device)].long().cpu()
            self.values.add(torch.arange(own.shape[1]).expand_as(own).reshape(-1), own.reshape(-1))
            scores = scores * self.step
        self.tokens += int(touched.sum())
        return (scores / self.unit) @ self.probe.W_dec + self.probe.mean_out

    def bits(self) -> float:
        """Bits per token."""
        return self.values.bits() / max(1, self.tokens)


def gaussian_bits(moments: Moments, fvu: float) -> float | None:
    """Bits per token that an ideal linear code of x takes at this FVU; None where it is undefined."""
    covariance = moments.xx / moments.count - torch.outer(moments.mean_in, moments.mean_in)
    variances = torch.linalg.eigvalsh(covariance)
    found = water_filling(variances, fvu * float(variances.clamp_min(0).sum())) if np.isfinite(fvu) else math.nan
    return found if math.isfinite(found) else None
