"""What is fitted for the baselines: means of what is written, and affine maps from what is read, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.eval.sums.row_groups import RowGroups
from saekernels.sae.probes import AffineProbe, Moments, fit_probes

MOST_WIDTH = 4096
"""Above it the reads of all layers together are too wide for second moments: no map across layers is fitted."""


class Fits:
    """Moments of the clean model over the half that is fitted on, inside of one domain and outside of it.

    affine: whether second moments are wanted. Sums have the same bits however rows come in batches.
    """

    def __init__(self, subject: Subject, affine: bool) -> None:
        self.widths = subject.widths()
        self.across = affine and sum(d_in for d_in, _ in self.widths) <= MOST_WIDTH
        self.affine = affine
        self.moments = [self._made(), self._made()]
        self._groups = [[RowGroups(one.add) for one in part] for part in self.moments]
        self.active = torch.zeros(len(self.widths), dtype=torch.int64)
        self.counted = 0

    def _made(self) -> list[Moments]:
        widths = self.widths
        if self.across:
            widths = [(sum(d_in for d_in, _ in widths), sum(d_out for _, d_out in widths))]
        return [Moments(d_in, d_out, second=self.affine) for d_in, d_out in widths]

    def add(self, inside: bool, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """Rows [n, d_in] and [n, d_out] of each layer, of the same positions."""
        groups = self._groups[0 if inside else 1]
        if self.across:
            groups[0].add(torch.cat([x.cpu() for x in reads], 1), torch.cat([y.cpu() for y in writes], 1))
            return
        for group, x, y in zip(groups, reads, writes, strict=True):
            group.add(x, y)

    def count(self, l0: Sequence[Tensor]) -> None:
        """Active latents [n] of each layer, at the same positions."""
        self.active = self.active + torch.stack([one.sum().cpu() for one in l0])
        self.counted += len(l0[0])

    def flush(self) -> None:
        """Count in the rows that still wait for others."""
        for group in (group for part in self._groups for group in part):
            group.flush()

    @property
    def l0(self) -> list[float]:
        """Active latents of each layer, per position."""
        return [float(one) / max(1, self.counted) for one in self.active]

    def rows(self, inside: bool | None) -> int:
        """How many rows there are, inside of the domain, outside, or for None in both."""
        counts = [part[0].count for part in self.moments]
        return sum(counts) if inside is None else counts[0 if inside else 1]

    def means(self) -> list[Tensor]:
        """[d_out] fp32, the mean of what each layer writes."""
        whole = [a + b for a, b in zip(*self.moments, strict=True)]
        if not self.across:
            return [one.mean_out.float() for one in whole]
        return list(whole[0].mean_out.float().split([d_out for _, d_out in self.widths]))

    def maps(self, ranks: Sequence[int], inside: bool | None, across: bool = False) -> list[AffineProbe]:
        """Of each layer the best affine map of that rank to what it writes, from what it reads.

        inside: fitted inside of the domain or outside; None: on everything. across: from what all layers up to it read.
        """
        parts = self.moments if inside is None else [self.moments[0 if inside else 1]]
        whole = parts[0] if len(parts) == 1 else [a + b for a, b in zip(*parts, strict=True)]
        made = []
        starts = [sum(d_in for d_in, _ in self.widths[:layer]) for layer in range(len(self.widths) + 1)]
        ends = [sum(d_out for _, d_out in self.widths[:layer]) for layer in range(len(self.widths) + 1)]
        for layer, rank in enumerate(ranks):
            if self.across:
                first = 0 if across else starts[layer]
                block = _block(whole[0], slice(first, starts[layer + 1]), slice(ends[layer], ends[layer + 1]))
            else:
                block = whole[layer]
            made.append(fit_probes(block, [rank])[rank])
        return made

    def shared_maps(self, rank: int, inside: bool | None) -> list[AffineProbe]:
        """Of each layer what the best affine code of that rank, one for all layers, writes there, of what all read.

        Layers write where they read; that is PCA of all of it, each layer counting alike. inside: as of `maps`.
        """
        parts = self.moments if inside is None else [self.moments[0 if inside else 1]]
        whole = (parts[0][0] if len(parts) == 1 else parts[0][0] + parts[1][0]).part(None)
        sizes = [d_in for d_in, _ in self.widths]
        spreads = (whole.xx.diagonal() / max(1, whole.count) - whole.mean_in.square()).clamp_min(0).split(sizes)
        scales = torch.cat([one.sum().clamp_min(1e-300).rsqrt().expand(len(one)) for one in spreads])
        alike = whole.part(None)
        alike.sum_x, alike.xx = whole.sum_x * scales, whole.xx * scales * scales[:, None]
        found, mean = fit_probes(alike, [rank])[rank], whole.mean_in.float()
        down, up = found.W_enc * scales.float(), found.W_dec / scales.float()
        parts_out = zip(up.split(sizes, 1), mean.split(sizes), strict=True)
        return [AffineProbe(down, W_dec, mean, own) for W_dec, own in parts_out]

    def state(self) -> dict[str, Any]:
        """Everything, to be saved and given to `load`."""
        moments = [[one.state() for one in part] for part in self.moments]
        return {"moments": moments, "active": self.active, "counted": self.counted}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; what was seen before is forgotten."""
        for part, saved in zip(self.moments, state["moments"], strict=True):
            for one, own in zip(part, saved, strict=True):
                one.load(own)
        self.active, self.counted = state["active"], state["counted"]

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one of the same layers has seen."""
        for part, saved in zip(self.moments, state["moments"], strict=True):
            for one, own in zip(part, saved, strict=True):
                one.merge(own)
        self.active, self.counted = self.active + state["active"], self.counted + state["counted"]


def _block(whole: Moments, reads: slice, writes: slice) -> Moments:
    """The moments of some columns of x and some of y."""
    made = whole.part(writes)
    made.sum_x, made.xx, made.xy = whole.sum_x[reads], whole.xx[reads, reads], made.xy[reads]
    return made
