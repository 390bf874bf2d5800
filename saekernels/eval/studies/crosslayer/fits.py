"""What is fitted for the baselines: means of what is written, and affine maps from what is read, layer by layer."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.studies.crosslayer.earlier import Earlier, Sketch
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.eval.sums.row_groups import RowGroups
from saekernels.sae.codes import Codes
from saekernels.sae.probes import AffineProbe, Moments, fit_probes

MOST_WIDTH = 4096
"""Above it what all layers read is too wide for second moments together: a map across layers reads less (`Earlier`)."""


class Fits:
    """Moments of the clean model over the half that is fitted on, of each domain that is asked for and of all others.

    domains: those; affine: whether second moments are wanted. Sums have the same bits however rows come in batches.
    Memory of second moments: (d_in^2 + d_in * d_out) doubles, with d_in and d_out those of all layers together where
    these read no more than MOST_WIDTH, else of each layer, times one more than there are domains.

    together: whether moments are of all layers together. earlier: what maps across layers are fitted from where they
    are not, after a second pass; None before it.
    """

    def __init__(self, subject: Subject, affine: bool, domains: Sequence[str]) -> None:
        self.widths, self.domains = subject.widths(), list(domains)
        self.affine = affine
        self.together = affine and sum(d_in for d_in, _ in self.widths) <= MOST_WIDTH
        self.sketch = Sketch(self.widths) if affine and not self.together and not subject.same else None
        self.earlier: Earlier | None = None
        self.moments = [self._made() for _ in range(len(domains) + 1)]
        self._groups = [RowGroups(functools.partial(self._take, part)) for part in range(len(self.moments))]
        sizes = [subject.layer(number).n_latents for number in subject.layers]
        self.fired = [[torch.zeros(size, dtype=torch.bool) for size in sizes] for _ in domains]
        self.active = torch.zeros(len(self.widths), dtype=torch.int64)
        self.counted = 0

    def _made(self) -> list[Moments]:
        widths = self.widths
        if self.together:
            widths = [(sum(d_in for d_in, _ in widths), sum(d_out for _, d_out in widths))]
        elif self.sketch is not None:
            widths = [(d_in, d_out + self.sketch.size) for d_in, d_out in widths]
        return [Moments(d_in, d_out, second=self.affine) for d_in, d_out in widths]

    def part(self, domain: str) -> int:
        """Where rows of a domain are counted: its place in `domains`, or the last part, of all others."""
        return self.domains.index(domain) if domain in self.domains else len(self.domains)

    def add(self, part: int, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """Rows [n, d_in] and [n, d_out] of each layer, of the same positions."""
        if self.together:
            reads, writes = [torch.cat([x.cpu() for x in reads], 1)], [torch.cat([y.cpu() for y in writes], 1)]
        self._groups[part].add(*reads, *writes)

    def _take(self, part: int, *rows: Tensor) -> None:
        moments = self.moments[part]
        reads, writes = rows[: len(moments)], rows[len(moments) :]
        if self.sketch is not None:
            sketched = self.sketch.of(writes)
            writes = tuple(torch.cat([y.float(), z], 1) for y, z in zip(writes, sketched, strict=True))
        for one, x, y in zip(moments, reads, writes, strict=True):
            one.add(x, y)

    def second(self) -> Earlier:
        """What the second pass adds up, where moments are not of all layers together; kept as `earlier`."""
        assert self.sketch is not None
        size, told = self.sketch.size, []
        for one, (_, d_out) in zip(self._whole(None), self.widths, strict=True):
            told.append(fit_probes(one.part(slice(d_out, d_out + size)), [size])[size])
        self.earlier = Earlier(told, self.widths)
        return self.earlier

    def meet(self, part: int, codes: Sequence[Codes]) -> None:
        """Codes of each layer at positions of a domain that is asked for: which of its latents are ever active."""
        for own, one in zip(self.fired[part], codes, strict=True):
            own[one.indices[one.values != 0].cpu().long()] = True

    def count(self, l0: Sequence[Tensor]) -> None:
        """Active latents [n] of each layer, at the same positions."""
        self.active = self.active + torch.stack([one.sum().cpu() for one in l0])
        self.counted += len(l0[0])

    def flush(self) -> None:
        """Count in the rows that still wait for others."""
        for group in self._groups:
            group.flush()

    @property
    def l0(self) -> list[float]:
        """Active latents of each layer, per position."""
        return [float(one) / max(1, self.counted) for one in self.active]

    def rows(self, domain: str | None = None) -> int:
        """How many rows there are of a domain, or for None of everything."""
        return sum(one[0].count for one in self._parts(domain))

    def _parts(self, domain: str | None) -> list[list[Moments]]:
        return self.moments if domain is None else [self.moments[self.domains.index(domain)]]

    def _whole(self, domain: str | None) -> list[Moments]:
        parts = zip(*self._parts(domain), strict=True)
        return [functools.reduce(operator.add, own) for own in parts]

    def means(self) -> list[Tensor]:
        """[d_out] fp32, the mean of what each layer writes."""
        whole = self._whole(None)
        if not self.together:
            return [one.mean_out[:d_out].float() for one, (_, d_out) in zip(whole, self.widths, strict=True)]
        return list(whole[0].mean_out.float().split([d_out for _, d_out in self.widths]))

    def maps(self, ranks: Sequence[int], domain: str | None = None, across: bool = False) -> list[AffineProbe]:
        """Of each layer the best affine map of that rank to what it writes, from what it reads.

        domain: fitted on that alone; None: on everything. across: from what all layers up to it read; `telling` says
        what a map reads of the layers before its own.
        """
        if across and self.earlier is not None:
            return self.earlier.maps(ranks)
        whole = self._whole(domain)
        made = []
        starts = [sum(d_in for d_in, _ in self.widths[:layer]) for layer in range(len(self.widths) + 1)]
        ends = [sum(d_out for _, d_out in self.widths[:layer]) for layer in range(len(self.widths) + 1)]
        for layer, rank in enumerate(ranks):
            if self.together:
                first = 0 if across else starts[layer]
                block = _block(whole[0], slice(first, starts[layer + 1]), slice(ends[layer], ends[layer + 1]))
            else:
                block = whole[layer].part(slice(0, self.widths[layer][1]))
            made.append(fit_probes(block, [rank])[rank])
        return made

    def shared_maps(self, rank: int, domain: str | None = None) -> list[AffineProbe]:
        """Of each layer what the best affine code of that rank, one for all layers, writes there, of what all read.

        Layers write where they read; that is PCA of all of it, each layer counting alike. domain: as of `maps`.
        """
        whole = self._whole(domain)[0].part(None)
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
        return {"moments": moments, "fired": self.fired, "active": self.active, "counted": self.counted}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; what was seen before is forgotten."""
        for part, saved in zip(self.moments, state["moments"], strict=True):
            for one, own in zip(part, saved, strict=True):
                one.load(own)
        self.fired, self.active, self.counted = state["fired"], state["active"], state["counted"]

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one of the same layers has seen."""
        for part, saved in zip(self.moments, state["moments"], strict=True):
            for one, own in zip(part, saved, strict=True):
                one.merge(own)
        for own, others in zip(self.fired, state["fired"], strict=True):
            own[:] = [a | b for a, b in zip(own, others, strict=True)]
        self.active, self.counted = self.active + state["active"], self.counted + state["counted"]


def _block(whole: Moments, reads: slice, writes: slice) -> Moments:
    """The moments of some columns of x and some of y."""
    made = whole.part(writes)
    made.sum_x, made.xx, made.xy = whole.sum_x[reads], whole.xx[reads, reads], made.xy[reads]
    return made
