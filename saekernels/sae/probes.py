"""Affine probes of rank r: what a linear reconstruction of an activation keeps. The control for SAEs.

A probe stands wherever an SAE stands (`splice`, the evaluator); it has no codes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_ROWS_AT_ONCE = 4096
_RIDGE = 1e-9
_RIDGES = tuple(10.0**power for power in range(1, -9, -1))
_SUMS = ("sum_x", "sum_y", "xx", "xy")


class AffineProbe(nn.Module):
    """x_hat = mean_out + (x - mean_in) @ W_enc.T @ W_dec.

    W_enc [r, d_in], W_dec [r, d_out], mean_in [d_in], mean_out [d_out]; x [..., d_in] gives [..., d_out].
    """

    architecture = "affine"

    def __init__(self, W_enc: Tensor, W_dec: Tensor, mean_in: Tensor, mean_out: Tensor) -> None:
        super().__init__()
        rank, d_in = W_enc.shape
        if W_dec.shape[0] != rank or mean_in.shape != (d_in,) or mean_out.shape != W_dec.shape[1:]:
            shapes = [tuple(t.shape) for t in (W_enc, W_dec, mean_in, mean_out)]
            raise ValueError(f"W_enc, W_dec, mean_in, mean_out: need [r, d_in], [r, d_out], [d_in], [d_out]; {shapes}")
        for name, value in (("W_enc", W_enc), ("W_dec", W_dec), ("mean_in", mean_in), ("mean_out", mean_out)):
            self.register_buffer(name, value.detach().clone())
        self.rank, self.d_in, self.d_out = rank, d_in, W_dec.shape[1]

    W_enc: Tensor
    W_dec: Tensor
    mean_in: Tensor
    mean_out: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x [..., d_in]: [..., d_out]."""
        return (x - self.mean_in) @ self.W_enc.T @ self.W_dec + self.mean_out

    def forward_with_codes(self, x: Tensor) -> tuple[Tensor, None]:
        """The reconstruction, and None for codes, as `SAE.forward_with_codes`."""
        return self(x), None

    def extra_repr(self) -> str:
        """What repr() shows between the brackets: both widths and the rank."""
        return f"d_in={self.d_in}, d_out={self.d_out}, rank={self.rank}"


class Moments:
    """Streaming first and second moments of rows x [n, d_in] and, where it is another tensor, y [n, d_out]; all fp64.

    Memory: (d_in^2 + d_in * d_out) doubles, and no more however many rows are added. `second=False` keeps means alone.
    """

    def __init__(self, d_in: int, d_out: int | None = None, *, second: bool = True) -> None:
        self.paired = d_out is not None
        self.count = 0
        self.sum_x = torch.zeros(d_in, dtype=torch.float64)
        self.sum_y = torch.zeros(d_out or 0, dtype=torch.float64)
        self.xx = torch.zeros(d_in if second else 0, d_in, dtype=torch.float64)
        self.xy = torch.zeros(d_in if second else 0, d_out or 0, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """x [n, d_in]; y [n, d_out] exactly where d_out was given."""
        others = y.split(_ROWS_AT_ONCE) if y is not None else [None] * len(x.split(_ROWS_AT_ONCE))
        for part, other in zip(x.split(_ROWS_AT_ONCE), others, strict=True):
            rows = part.double()
            self.sum_x += rows.sum(0).cpu()
            if len(self.xx):
                self.xx += (rows.T @ rows).cpu()
            if other is not None:
                outs = other.double()
                self.sum_y += outs.sum(0).cpu()
                if len(self.xx):
                    self.xy += (rows.T @ outs).cpu()
        self.count += len(x)

    @property
    def mean_in(self) -> Tensor:
        """[d_in] fp64, the mean of x; zeros for no rows."""
        return self.sum_x / max(1, self.count)

    @property
    def mean_out(self) -> Tensor:
        """[d_out] fp64, the mean of y, or of x where there is no y; zeros for no rows."""
        return self.sum_y / max(1, self.count) if self.paired else self.mean_in

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows."""
        both = Moments.__new__(Moments)
        both.paired, both.count = self.paired, self.count + other.count
        for name in _SUMS:
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def part(self, columns: slice | None) -> Moments:
        """The moments of x and these columns of y; of x alone for None. The sums of x are shared, not copied."""
        made = Moments.__new__(Moments)
        made.paired, made.count, made.sum_x, made.xx = columns is not None, self.count, self.sum_x, self.xx
        columns = columns or slice(0, 0)
        made.sum_y, made.xy = self.sum_y[columns], self.xy[:, columns]
        return made

    def state(self) -> dict[str, Any]:
        """Everything, to be saved and given to `load`."""
        return dict(vars(self))

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; the rows seen before are forgotten."""
        vars(self).update(state)

    def merge(self, state: dict[str, Any]) -> None:
        """Add the rows of other moments of the same widths, by their state."""
        self.count += state["count"]
        for name in _SUMS:
            setattr(self, name, getattr(self, name).add_(state[name]))


def fit_probes(moments: Moments, ranks: Sequence[int]) -> dict[int, AffineProbe]:
    """The affine maps of these ranks with the least squared error over the rows in `moments`, fp32.

    x to itself this is PCA (the first r principal components about the mean); x to y it is reduced-rank regression
    (Izenman 1975: the first r singular directions of Sxx^-1/2 Sxy). Ranks above min(d_in, d_out) are cut to it;
    directions in which the rows do not differ are left out, so n rows give at most n - 1.

    Raises ValueError for a rank below 0, or moments without rows or without second moments.
    """
    if moments.count < 1 or not len(moments.xx):
        raise ValueError(f"moments: need rows and second moments, got {moments.count} rows, xx {len(moments.xx)}")
    if min(ranks, default=0) < 0:
        raise ValueError(f"ranks: need at least 0, got {min(ranks)}")
    mean_in, mean_out = moments.mean_in, moments.mean_out
    down, up = _directions(moments, mean_in, mean_out)
    widest = min(len(mean_in), len(mean_out))
    means = (mean_in.float(), mean_out.float())
    return {
        rank: AffineProbe(down[: min(rank, widest)].float(), up[: min(rank, widest)].float(), *means) for rank in ranks
    }


def fit_ridge(folds: Sequence[Moments], groups: Sequence[slice]) -> list[tuple[AffineProbe, float]]:
    """Affine maps from x to groups of columns of y by ridge regression over the rows of all folds, with their ridges.

    The ridge is relative to the mean variance of x: the one of 10, 1, ..., 1e-8 with the least squared error on each
    fold of maps that are fitted on the others (the largest among equals); 1 where fewer than two folds have rows. Folds
    should part what is alike, such as the rows of one document.

    Raises ValueError for moments without rows, without second moments or without y.
    """
    folds = [fold for fold in folds if fold.count]
    if not folds or not len(folds[0].xx) or not folds[0].paired:
        raise ValueError(f"folds: need rows of x and y, and second moments, got {sum(f.count for f in folds)} rows")
    every = functools.reduce(operator.add, folds)
    errors = torch.zeros(len(groups), len(_RIDGES), dtype=torch.float64)
    for index, held in enumerate(folds if len(folds) > 1 else ()):
        rest = functools.reduce(operator.add, folds[:index] + folds[index + 1 :])
        errors += _held_out(rest, held, groups)
    picked = errors.argmin(1).tolist() if len(folds) > 1 else [_RIDGES.index(1.0)] * len(groups)
    values, vectors, cross, unit = _rotated(every)
    means = every.mean_in.float(), every.mean_out.float()
    made = []
    for own, ridge in zip(groups, (_RIDGES[index] for index in picked), strict=True):
        down = cross[:, own] / (values + ridge * unit)[:, None]
        made.append((AffineProbe(vectors.T.float(), down.float(), means[0], means[1][own]), ridge))
    return made


def _rotated(moments: Moments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Variances of x [d_in] and their directions [d_in, d_in], covariances with y along these, the mean variance."""
    mean_in, mean_out, n = moments.mean_in, moments.mean_out, moments.count
    values, vectors = torch.linalg.eigh(moments.xx / n - torch.outer(mean_in, mean_in))
    values = values.clamp_min(0)
    cross = vectors.T @ (moments.xy / n - torch.outer(mean_in, mean_out))
    return values, vectors, cross, values.mean().clamp_min(1e-300)


def _held_out(rest: Moments, held: Moments, groups: Sequence[slice]) -> Tensor:
    """[groups, ridges] fp64: squared errors on `held` of maps fitted on `rest`, without what no map can change."""
    values, vectors, cross, unit = _rotated(rest)
    mean_in, mean_out = rest.mean_in, rest.mean_out
    # Moments of the held-out rows about the means of the others.
    shift = held.sum_x - held.count * mean_in
    xx = held.xx - torch.outer(held.sum_x, mean_in) - torch.outer(mean_in, shift)
    xy = held.xy - torch.outer(mean_in, held.sum_y) - torch.outer(shift, mean_out)
    xx, xy = vectors.T @ xx @ vectors, vectors.T @ xy
    made = torch.empty(len(groups), len(_RIDGES), dtype=torch.float64)
    for index, ridge in enumerate(_RIDGES):
        down = cross / (values + ridge * unit)[:, None]
        columns = (down * (xx @ down - 2 * xy)).sum(0)
        made[:, index] = torch.stack([columns[own].sum() for own in groups])
    return made


def _directions(moments: Moments, mean_in: Tensor, mean_out: Tensor) -> tuple[Tensor, Tensor]:
    """[d, d_in] and [d, d_out], best first: rank r is their first r rows."""
    covariance = moments.xx / moments.count - torch.outer(mean_in, mean_in)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    known = values > _RIDGE * values[0].clamp_min(1e-300)
    if not moments.paired:
        # Directions in which the rows do not differ are noise of the decomposition: fewer rows, fewer directions.
        own = (vectors * known).T.contiguous()
        return own, own
    cross = moments.xy / moments.count - torch.outer(mean_in, mean_out)
    # Directions that x does not have at all explain nothing of y.
    inverse = torch.where(known, values, torch.inf).rsqrt()
    whitener = vectors * inverse @ vectors.T
    left, sizes, right = torch.linalg.svd(whitener @ cross, full_matrices=False)
    return (left.T @ whitener).contiguous(), (sizes[:, None] * right).contiguous()
