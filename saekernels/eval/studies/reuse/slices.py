"""Sharing numbers of slices from narrow to broad, each beside a random set of as many positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.studies.reuse.marks import Marks
from saekernels.eval.studies.reuse.sharing import as_json, carriers, effective_number, overlap, shares
from saekernels.eval.studies.reuse.text import Layout
from saekernels.eval.sums.jackknife import estimate, leave_one_out

_ORDER = ("token", "template", "document", "domain", "everything")
_NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {"effective": effective_number, "carriers": carriers}


class SliceSums:
    """What latents do in each slice and in each random set, of one kind (effect or mass), fp64.

    slices [2, G, L, F] and drawn [2, G, R + 1, F] by half, group, shell (what lies in none before it) and latent;
    documents [2, G, D, F]: of the first document of each cell.
    """

    def __init__(self, marks: Marks, layout: Layout, latents: int) -> None:
        self.marks, self.layout, self.latents = marks, layout, latents
        front = (2, layout.groups)

        def zeros(number: int) -> Tensor:
            return torch.zeros(*front, number, latents, dtype=torch.float64)

        self.slices, self.drawn = zeros(len(marks.levels)), zeros(len(marks.rates) + 1)
        self.documents = zeros(len(layout.domains))

    def add(self, documents: Tensor, slices: Tensor, drawn: Tensor, latents: Tensor, values: Tensor) -> None:
        """Entries [n]: the document, slice and random set of the position, the latent, what it does there."""
        cell = self.layout.half[documents] * self.layout.groups + self.layout.group[documents]
        for sums, place in ((self.slices, slices), (self.drawn, drawn)):
            flat = (cell * sums.shape[2] + place) * self.latents + latents
            sums.view(-1).index_add_(0, flat, values)
        own = self.layout.first[documents]
        flat = self.layout.cells(documents[own]) * self.latents + latents[own]
        self.documents.view(-1).index_add_(0, flat, values[own])

    def figures(self) -> list[dict[str, Any]]:
        """Of every level from narrow to broad, with intervals; JSON-ready."""
        parts = (self.slices.cumsum(2), self.drawn.cumsum(2), self.documents)
        many = [
            self._figures(*some) for some in zip(*(leave_one_out(one.transpose(0, 1)) for one in parts[:2]),
                                                 _without_each(parts[2]), strict=True)
        ]  # fmt: skip

        def figure(of: Callable[[dict[str, dict[str, Tensor]]], Tensor]) -> dict[str, Any]:
            return as_json(estimate([float(of(one)) for one in many]))

        found = []
        for level in (name for name in _ORDER if name in many[0]):
            row: dict[str, Any] = {"level": level, "name": self.marks.names()[level]}
            for key in many[0][level]:
                row[key] = figure(lambda one, level=level, key=key: one[level][key])  # type: ignore[misc]
            found.append(row)
        return found

    def _figures(self, slices: Tensor, drawn: Tensor, documents: Tensor) -> dict[str, dict[str, Tensor]]:
        """By level, of sums [2, L, F], [2, R + 1, F] and those of single documents [2, n, F]."""
        everything = slices[:, -1]
        random = {level: drawn[:, at] for at, (level, _) in enumerate(self.marks.drawn)}
        found = {}
        for at, level in enumerate(self.marks.levels[:-1]):
            inner = slices[:, at]
            found[level] = _beside(inner[:, None], everything - inner, random[level], everything - random[level])
        # What a document is compared with is of the other half, where it is not.
        found["document"] = _beside(documents, everything, random["document"], everything - random["document"])
        found["everything"] = {name: of(shares(everything)).mean() for name, of in _NUMBERS.items()}
        return found


def _without_each(sums: Tensor) -> list[Tensor]:
    """[2, n, F]: the cells of sums [2, G, D, F], all of them and then without those of each group."""
    groups = range(sums.shape[1])
    return [sums.flatten(1, 2), *(sums[:, [one for one in groups if one != gone]].flatten(1, 2) for gone in groups)]


def _beside(inner: Tensor, outside: Tensor, random: Tensor, rest: Tensor) -> dict[str, Tensor]:
    """The numbers of slices [2, n, F], their means, beside those of a random set [2, F].

    outside, rest [2, F]: what is compared with them, of each half.
    """
    own, by_luck = _numbers(inner, outside), _numbers(random[:, None], rest)
    found = {**own, **{f"random_{name}": by_luck[name] for name in ("effective", "carriers", "general")}}
    return found | {f"{name}_ratio": own[name] / by_luck[name] for name in ("effective", "general")}


def _numbers(inner: Tensor, outside: Tensor) -> dict[str, Tensor]:
    """Means over halves and over slices of those in which something carries; NaN where there are none."""
    p, rest = shares(inner), shares(outside)
    known = ~p.isnan().any(-1)
    found = {name: of(p)[known].mean() for name, of in _NUMBERS.items()}
    pairs = [overlap(p[half][known[half]], rest[None, 1 - half])[:, 0] for half in (0, 1) if known[half].any()]
    found["general"] = torch.cat(pairs).mean() if pairs else torch.tensor(float("nan"))
    return found
