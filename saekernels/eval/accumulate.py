"""Sums that grow with the tokens: losses per document, moments and activity per site. All across-row sums are fp64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from saekernels.codes import Codes

COLUMNS = ("clean", "spliced", "zero", "mean", "kl", "agree")
_ROWS_AT_ONCE = 1024


class LossSums:
    """Per-document sums of the six per-token figures of COLUMNS for one target (a site, or all sites together)."""

    def __init__(self, documents: int) -> None:
        self.sums = torch.zeros(documents, len(COLUMNS), dtype=torch.float64)
        self.not_finite = torch.zeros(len(COLUMNS), dtype=torch.int64)

    def add(self, documents: Tensor, figures: Sequence[Tensor]) -> None:
        """documents [n] int64 on the CPU; figures: one [n] tensor per column."""
        rows = torch.stack([figure.detach() for figure in figures], dim=1).to("cpu", torch.float64)
        self.sums.index_add_(0, documents, rows)
        self.not_finite += (~torch.isfinite(rows)).sum(0)


class Means:
    """Streaming mean of what each site would replace, over touched positions of the clean run."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, site: str, target: Tensor, touched: Tensor) -> None:
        """target [..., d_out]; touched [...] bool."""
        rows = target[touched]
        total = self._sums.setdefault(site, torch.zeros(rows.shape[-1], dtype=torch.float64))
        for part in rows.split(_ROWS_AT_ONCE):
            total += part.double().sum(0).cpu()
        self._counts[site] = self._counts.get(site, 0) + len(rows)

    def result(self) -> dict[str, Tensor]:
        """Mean per site, [d_out] fp64 on the CPU."""
        return {site: total / max(1, self._counts[site]) for site, total in self._sums.items()}


class SiteStats:
    """Reconstruction and activity of one SAE while it is spliced in: FVU, L0, dead latents, over touched positions.

    FVU = sum |target - x_hat|^2 / sum |target - mean(target)|^2. The second moment is taken about the clean mean, so
    that large constant components do not cancel, and corrected by the run's own mean at the end.
    """

    def __init__(self, n_latents: int, centre: Tensor) -> None:
        self.centre = centre
        self.error = 0.0
        self.spread = 0.0
        self.shift = torch.zeros_like(centre, dtype=torch.float64)
        self.active = 0
        self.positions = 0
        self.fired = torch.zeros(n_latents, dtype=torch.bool)

    def add(self, x_hat: Tensor, target: Tensor, codes: Codes | None, touched: Tensor) -> None:
        """x_hat, target [..., d_out]; touched [...] bool; codes of the same leading shape."""
        rows, estimates = target[touched], x_hat[touched]
        centre = self.centre.to(rows.device, torch.float32)
        for part, estimate in zip(rows.split(_ROWS_AT_ONCE), estimates.split(_ROWS_AT_ONCE), strict=True):
            centred = part.float() - centre
            self.error += float((part.float() - estimate.float()).square().sum(-1).double().sum())
            self.spread += float(centred.square().sum(-1).double().sum())
            self.shift += centred.double().sum(0).cpu()
        self.positions += len(rows)
        if codes is not None:
            self._add_codes(codes, touched)

    def _add_codes(self, codes: Codes, touched: Tensor) -> None:
        active = (codes.values != 0).cpu()
        indices = codes.indices.cpu().long()
        kept = touched.reshape(-1).cpu()
        if codes.offsets is None:
            width = active.shape[-1]
            active, indices = active.reshape(-1, width) & kept[:, None], indices.reshape(-1, width)
        else:
            active = active & kept.repeat_interleave(codes.offsets.cpu().diff())
        self.active += int(active.sum())
        self.fired[indices[active]] = True

    @property
    def fvu(self) -> float:
        if not self.positions:
            return float("nan")
        variance = self.spread - float(self.shift.square().sum()) / self.positions
        return self.error / variance if variance > 0 else float("nan")

    @property
    def l0(self) -> float:
        return self.active / self.positions if self.positions else float("nan")

    @property
    def dead_fraction(self) -> float:
        return 1.0 - float(self.fired.double().mean())


def mean_stats(stats: Mapping[str, SiteStats]) -> tuple[float, float, float]:
    """(l0, fvu, dead_fraction), each averaged over sites."""
    values = [(one.l0, one.fvu, one.dead_fraction) for one in stats.values()]
    l0, fvu, dead = (sum(column) / len(values) for column in zip(*values, strict=True))
    return l0, fvu, dead
