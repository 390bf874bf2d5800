"""How many latents two SAEs of one site share: by the cosines of their decoder rows, and by when they are active."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.studies.site_passes import entries_of
from saekernels.sae.codes import Codes

THRESHOLDS = (0.7, 0.9)
MOST_LATENTS = 4096
LEAST_ACTIVE = 10
_ROWS_AT_ONCE = 512
_LATENTS_AT_ONCE = 2048


def best_cosines(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nearest decoder rows of a [A, d] among b [B, d] and the other way round.

    Returns (cosines [A], indices [A] into b, cosines [B], indices [B] into a), fp32 and int64. A row of zeros has
    cosine 0.
    """
    a, b = (rows.detach().float() / rows.detach().float().norm(dim=1, keepdim=True).clamp_min(1e-30) for rows in (a, b))
    forth, there = a.new_full((len(a),), -2.0), torch.zeros(len(a), dtype=torch.int64, device=a.device)
    back, here = torch.empty(len(b), device=a.device), torch.empty(len(b), dtype=torch.int64, device=a.device)
    for start in range(0, len(b), _LATENTS_AT_ONCE):
        block = a @ b[start : start + _LATENTS_AT_ONCE].T
        stop = start + block.shape[1]
        back[start:stop], here[start:stop] = block.max(0)
        best, at = block.max(1)
        better = best > forth
        forth, there = torch.where(better, best, forth), torch.where(better, at + start, there)
    return forth.cpu(), there.cpu(), back.cpu(), here.cpu()


def mutual(there: Tensor, here: Tensor) -> Tensor:
    """[n, 2] int64: the pairs (a, b) of which each is the other's nearest, from both sides' indices."""
    own = torch.arange(len(there))
    kept = here[there] == own
    return torch.stack([own[kept], there[kept]], 1)


@dataclass
class Activity:
    """The active latents of one SAE over the touched positions of a text, 16 bytes each."""

    n_latents: int
    positions: int = 0
    _parts: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def add(self, codes: Codes, touched: Tensor) -> None:
        """codes [..., F] and touched [...] of one batch."""
        rows, latents, values = entries_of(codes, touched)
        place = touched.reshape(-1).cpu().cumsum(0) - 1
        self._parts.append(((place[rows] + self.positions), latents.int(), values.detach().float().cpu()))
        self.positions += int(touched.sum())

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """(positions [nnz] int64 ascending, latents [nnz] int32, values [nnz] fp32)."""
        if not self._parts:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0)
        self._parts = [tuple(torch.cat(column) for column in zip(*self._parts, strict=True))]  # type: ignore[list-item]
        return self._parts[0]

    def counts(self) -> Tensor:
        """[F] int64: at how many positions each latent is active."""
        return torch.bincount(self.entries()[1].long(), minlength=self.n_latents)

    def busiest(self) -> Tensor:
        """Ascending: the latents that are active at least LEAST_ACTIVE times, at most MOST_LATENTS, the busiest."""
        counts = self.counts()
        number = min(MOST_LATENTS, int((counts >= LEAST_ACTIVE).sum()))
        return counts.topk(number).indices.sort().values

    def dense(self, latents: Tensor, start: int) -> Tensor:
        """[rows, len(latents)] fp32: their values at up to 512 positions from `start` on, 0 where not active."""
        rows, found, values = self.entries()
        stop = min(start + _ROWS_AT_ONCE, self.positions)
        span = slice(*torch.searchsorted(rows, torch.tensor([start, stop])).tolist())
        place = torch.full((self.n_latents,), -1, dtype=torch.int64)
        place[latents] = torch.arange(len(latents))
        at = place[found[span].long()]
        made = torch.zeros(stop - start, len(latents))
        made[rows[span][at >= 0] - start, at[at >= 0]] = values[span][at >= 0]
        return made


def overlap(a: Activity, b: Activity) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(latents of a [A], of b [B], intersection over union [A, B], correlation of values [A, B]), fp32.

    Of the busiest latents of both over the same positions.
    """
    mine, theirs = a.busiest(), b.busiest()
    both, products = (torch.zeros(len(mine), len(theirs)) for _ in range(2))
    moments = [torch.zeros(3, len(one), dtype=torch.float64) for one in (mine, theirs)]
    for start in range(0, a.positions, _ROWS_AT_ONCE):
        rows = a.dense(mine, start), b.dense(theirs, start)
        both += (rows[0] != 0).float().T @ (rows[1] != 0).float()
        products += rows[0].T @ rows[1]
        for sums, part in zip(moments, rows, strict=True):
            wide = part.double()
            sums += torch.stack([(wide != 0).sum(0), wide.sum(0), wide.square().sum(0)])
    n = max(1, a.positions)
    (count_a, sum_a, square_a), (count_b, sum_b, square_b) = moments
    union = count_a[:, None] + count_b - both
    spread = (square_a - sum_a.square() / n).clamp_min(0)[:, None] * (square_b - sum_b.square() / n).clamp_min(0)
    covariance = products - torch.outer(sum_a, sum_b) / n
    return mine, theirs, (both / union.clamp_min(1)).float(), (covariance / spread.clamp_min(1e-30).sqrt()).float()


def shares(best: Tensor) -> dict[str, float | None]:
    """The mean of each latent's best match, and the share of latents whose match reaches each of THRESHOLDS."""
    if not len(best):
        return dict.fromkeys(("mean", *map(str, THRESHOLDS)))
    return {"mean": float(best.mean()), **{str(t): float((best >= t).double().mean()) for t in THRESHOLDS}}


def decoder_matches(a: Any, b: Any, active: tuple[Tensor, Tensor]) -> tuple[dict[str, Any], Tensor]:
    """What two SAEs' decoders share, JSON-ready; and the mutual pairs [n, 2] that reach the first threshold.

    active: bool [A] and [B], the latents that are active on the text at all; figures are given for all, and for these.
    """
    forth, there, back, here = best_cosines(a.W_dec, b.W_dec)
    pairs = mutual(there, here)
    cosines = forth[pairs[:, 0]]
    sides = {"a_in_b": (forth, active[0]), "b_in_a": (back, active[1])}
    made: dict[str, Any] = {
        side: {"all": shares(best), "active": shares(best[own]), "active_latents": int(own.sum())}
        for side, (best, own) in sides.items()
    }
    made["one_to_one"] = {str(t): int((cosines >= t).sum()) for t in THRESHOLDS}
    return made, pairs[cosines >= THRESHOLDS[0]]


def activity_matches(a: Activity, b: Activity, pairs: Tensor) -> dict[str, Any]:
    """Which latents of two SAEs are active together on one text, JSON-ready; `pairs` [n, 2]: matched by decoder."""
    mine, theirs, iou, correlation = overlap(a, b)
    made: dict[str, Any] = {"positions": a.positions, "latents": [len(mine), len(theirs)]}
    for name, table in (("iou", iou), ("correlation", correlation)):
        known = min(table.shape) > 0
        made[name] = {
            "a_in_b": shares(table.amax(1) if known else table.new_zeros(0)),
            "b_in_a": shares(table.amax(0) if known else table.new_zeros(0)),
        }
    places = [torch.full((one.n_latents,), -1, dtype=torch.int64) for one in (a, b)]
    places[0][mine], places[1][theirs] = torch.arange(len(mine)), torch.arange(len(theirs))
    rows, columns = places[0][pairs[:, 0]], places[1][pairs[:, 1]]
    kept = (rows >= 0) & (columns >= 0)
    found = {name: table[rows[kept], columns[kept]] for name, table in (("iou", iou), ("correlation", correlation))}
    means = {name: float(one.mean()) if len(one) else None for name, one in found.items()}
    return {**made, "matched": {"pairs": int(kept.sum()), **means}}
