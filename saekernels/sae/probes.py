"""Affine probes of rank r: what a linear reconstruction of an activation keeps. The control for SAEs.

A probe stands wherever an SAE stands (`splice`, the evaluator); it has no codes.
"""

from __future__ import annotations

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


def fit_ridge(moments: Moments, spread: Tensor) -> tuple[AffineProbe, float]:
    """The affine map from x to y by ridge regression, and its ridge relative to the mean variance of x.

    The ridge is the one of 10^-8, 10^-7, ..., 10 with the least error by generalised cross-validation (Golub, Heath
    and Wahba 1979): RSS / (1 - df / n)^2, df the trace of the hat matrix, the constant included.

    Args:
        moments: of rows x and y, with second moments.
        spread: [d_out] fp64, the variance of each column of y over these rows.

    Raises ValueError for moments without rows, without second moments or without y.
    """
    if moments.count < 1 or not len(moments.xx) or not moments.paired:
        raise ValueError(f"moments: need rows of x and y, got {moments.count} rows, xx {len(moments.xx)}")
    n, mean_in, mean_out = moments.count, moments.mean_in, moments.mean_out
    values, vectors = torch.linalg.eigh(moments.xx / n - torch.outer(mean_in, mean_in))
    values = values.clamp_min(0)
    cross = vectors.T @ (moments.xy / n - torch.outer(mean_in, mean_out))  # [d_in, d_out]
    power, unit = cross.square().sum(1), values.mean().clamp_min(1e-300)

    def error(relative: float) -> float:
        loaded = values + relative * unit
        left = spread.sum() - (power * (2 / loaded - values / loaded.square())).sum()
        free = 1 - ((values / loaded).sum() + 1) / n
        return float(left / free.square()) if free > 0 else float("inf")

    ridge = min(_RIDGES, key=error)
    down = cross / (values + ridge * unit)[:, None]
    return AffineProbe(vectors.T.float(), down.float(), mean_in.float(), mean_out.float()), ridge


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
