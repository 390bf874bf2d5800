"""Sums that grow with the tokens: figures per document and stratum, reconstruction and activity. Sums are fp64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.sums.row_groups import add_rows
from saekernels.eval.text.strata import Strata
from saekernels.sae.codes import Codes

KL_DECADES = (-7, 2)
_PER_DECADE = 4
KL_BINS = (KL_DECADES[1] - KL_DECADES[0]) * _PER_DECADE + 2
_ROWS_AT_ONCE = 1024


class DocumentSums:
    """Of a chunk's documents: sums of per-token figures, [documents, cells, 2 + figures] fp64.

    The first two columns are the number of predictions and their bytes. first: number of the chunk's first document.
    """

    def __init__(self, first: int, documents: int, strata: Strata, columns: int) -> None:
        self.first, self.strata = first, strata
        self.sums = torch.zeros(documents, strata.cells, 2 + columns, dtype=torch.float64)

    def add(self, documents: Tensor, positions: Tensor, targets: Tensor, nbytes: Tensor, figures: Tensor) -> None:
        """documents, positions, targets, nbytes [n] int64 on the CPU; figures [n, columns] fp64."""
        counts = torch.stack([torch.ones_like(nbytes), nbytes], dim=1).double()
        rows = torch.cat([counts, figures], dim=1)
        flat = self.sums.view(-1, rows.shape[1])
        base = (documents - self.first) * self.strata.cells
        cells = (0, self.strata.position_cells(positions), self.strata.frequency_cell[targets])
        for cell in cells:
            flat.index_add_(0, base + cell, rows)


class KlHistogram:
    """Counts of per-token KL in quarter decades of nats; below and above in the first and the last bin."""

    def __init__(self) -> None:
        self.counts = torch.zeros(KL_BINS, dtype=torch.int64)

    def add(self, kl: Tensor) -> None:
        """kl [n]; NaN is left out."""
        kl = kl[~kl.isnan()].double().clamp_min(1e-300)
        bins = ((kl.log10() - KL_DECADES[0]) * _PER_DECADE).floor().clamp(-1, KL_BINS - 2).long() + 1
        self.counts += torch.bincount(bins, minlength=KL_BINS)

    @staticmethod
    def edges() -> list[float]:
        """The KL_BINS - 1 inner edges in nats."""
        return [10 ** (KL_DECADES[0] + i / _PER_DECADE) for i in range(KL_BINS - 1)]


class SiteStats:
    """Reconstruction and activity of one SAE while it is spliced in: FVU, L0, dead latents, over touched positions.

    FVU = sum |target - x_hat|^2 / sum |target - mean(target)|^2. The second moment is taken about the clean mean, so
    that large constant components do not cancel, and corrected by the run's own mean at the end.
    """

    def __init__(self, n_latents: int, centre: Tensor) -> None:
        self.centre = centre
        # Error, spread about the centre, and shift from it: [2 + d_out].
        self.sums = torch.zeros(2 + len(centre), dtype=torch.float64)
        self.active = 0
        self.positions = 0
        self.fired = torch.zeros(n_latents, dtype=torch.bool)

    def add(self, x_hat: Tensor, target: Tensor, codes: Codes | None, touched: Tensor) -> None:
        """x_hat, target [..., d_out]; touched [...] bool; codes of the same leading shape."""
        rows, estimates = target[touched], x_hat[touched]
        centre = self.centre.to(rows.device, torch.float32)
        for part, estimate in zip(rows.split(_ROWS_AT_ONCE), estimates.split(_ROWS_AT_ONCE), strict=True):
            centred = part.float() - centre
            error = (part.float() - estimate.float()).square().sum(-1)
            self.sums = add_rows(self.sums, torch.column_stack([error, centred.square().sum(-1), centred]))
        self.positions += len(rows)
        if codes is not None:
            self._add_codes(codes, touched)

    def count(self, fired: Tensor, active: int, positions: int) -> None:
        """Activity alone: latents that fired [F] bool, how many were active over so many positions."""
        self.active, self.positions, self.fired = self.active + active, self.positions + positions, self.fired | fired

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

    def state(self) -> dict[str, Any]:
        """Everything, to be saved and given to `load`."""
        return dict(vars(self))

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; what was seen before is forgotten."""
        vars(self).update(state)

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one of the same SAE and centre has seen."""
        self.sums = self.sums + state["sums"]
        self.active += state["active"]
        self.positions += state["positions"]
        self.fired = self.fired | state["fired"]

    @property
    def fvu(self) -> float:
        """The squared error over the variance about the mean; NaN for no position or no variance."""
        if not self.positions:
            return float("nan")
        error, spread = self.sums[:2].tolist()
        variance = spread - float(self.sums[2:].square().sum()) / self.positions
        return error / variance if variance > 0 else float("nan")

    @property
    def l0(self) -> float:
        """Active latents per position; NaN for no position."""
        return self.active / self.positions if self.positions else float("nan")

    @property
    def dead_fraction(self) -> float:
        """The share of the latents that was active nowhere."""
        return 1.0 - float(self.fired.double().mean())


def mean_stats(stats: Mapping[str, SiteStats]) -> tuple[float, float, float]:
    """(l0, fvu, dead_fraction), each averaged over sites."""
    values = [(one.l0, one.fvu, one.dead_fraction) for one in stats.values()]
    l0, fvu, dead = (sum(column) / len(values) for column in zip(*values, strict=True))
    return l0, fvu, dead
