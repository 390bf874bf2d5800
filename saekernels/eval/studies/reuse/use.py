"""What each latent does in each domain, in sums: how active it is, and what the loss would be without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from saekernels.eval.passes.left import over
from saekernels.eval.studies.reuse.marks import Marks
from saekernels.eval.studies.reuse.slices import SliceSums
from saekernels.eval.studies.reuse.text import Layout
from saekernels.eval.studies.site_passes import Seen, entries_of, weights_of
from saekernels.sae.codes import Codes
from saekernels.sae.probes import Moments

KINDS = ("effect", "mass")


class Found(NamedTuple):
    """What a layer does in a batch: its site in the clean pass, its codes, -z * dL/dz of each entry in their shape."""

    seen: Seen
    codes: Codes
    first_order: Tensor


def effect_of(first_order: Tensor) -> Tensor:
    """To second order, a + a^2 / 2 of a = -z * dL/dz: a^2 estimates the curvature (the empirical Fisher information).

    A model that is trained has little slope left along its own latents: what a removal costs is mostly curvature.
    """
    return first_order + first_order.square() / 2


class Use:
    """Sums over the text for one dictionary, of a size that does not depend on how long it is.

    saes: the SAE; or the encoders of all layers that make one dictionary, whose latents are numbered one layer after
    another, F in all. moments: of each layer (width of what it reads, of what is replaced where that is another, or
    None), for directions of its activations; none if there are none.

    sums: effect and mass, each [2, G, D, F] fp64 by half, group of documents, domain and latent. A latent's mass is the
    sum of |z| times what one unit of z moves the output. first_order [G, F] fp64: -z * dL/dz, over the second half.
    active [D, F] int64: positions of the first half at which a latent is active; positions [D] int64: those that are
    touched there, by the first layer. moments: by layer and domain, of what is read in the first half, and of what is
    replaced. slices: by kind, what latents do in slices and random sets, where the text has those.
    """

    def __init__(
        self,
        saes: Sequence[Any],
        layout: Layout,
        moments: Sequence[tuple[int, int | None]] = (),
        marks: Marks | None = None,
    ) -> None:
        self.saes, self.layout = saes, layout
        self.begins = list(accumulate((sae.n_latents for sae in saes), initial=0))
        self.n_latents = self.begins[-1]
        domains = len(layout.domains)
        shape = (2, layout.groups, domains, self.n_latents)
        self.sums = {kind: torch.zeros(shape, dtype=torch.float64) for kind in KINDS}
        self.first_order = torch.zeros(layout.groups, self.n_latents, dtype=torch.float64)
        self.active = torch.zeros(domains, self.n_latents, dtype=torch.int64)
        self.positions = torch.zeros(domains, dtype=torch.int64)
        self.moments = [[Moments(*widths) for _ in layout.domains] for widths in moments]
        kinds = KINDS if marks is not None else ()
        self.slices = {kind: SliceSums(cast(Marks, marks), layout, self.n_latents) for kind in kinds}

    def add(self, found: Sequence[Found], shells: tuple[Tensor, Tensor] | None = None) -> None:
        """One batch, by layer; shells: [B, S] each, as `Text.shells` gives them."""
        for number, one in enumerate(found):
            owners = torch.full(one.seen.touched.shape, -1)
            owners[one.seen.touched] = one.seen.documents
            self._add_sums(number, one, owners.reshape(-1), shells)
            self._add_counts(number, one, owners.reshape(-1))
            self._add_positions(number, one.seen)

    def _add_sums(self, number: int, found: Found, owners: Tensor, shells: tuple[Tensor, Tensor] | None) -> None:
        seen, codes = found.seen, found.codes
        both = {"mass": codes.values * self._units(number, codes), "effect": effect_of(found.first_order)}
        for kind, values in both.items():
            rows, latents, own = self._entries(number, replace(codes, values=values), seen)
            flat = self.layout.cells(owners[rows]) * self.n_latents + latents
            self.sums[kind].view(-1).index_add_(0, flat, own.double().cpu())
            if shells is not None:
                inner, drawn = (over(one, seen.touched.shape).reshape(-1)[rows] for one in shells)
                self.slices[kind].add(owners[rows], inner, drawn, latents, own.double().cpu())

    def _add_counts(self, number: int, found: Found, owners: Tensor) -> None:
        rows, latents, values = self._entries(number, replace(found.codes, values=found.first_order), found.seen)
        documents = owners[rows]
        second = self.layout.half[documents] == 1
        flat = self.layout.group[documents[second]] * self.n_latents + latents[second]
        self.first_order.view(-1).index_add_(0, flat, values.double().cpu()[second])
        rows, latents, _ = self._entries(number, found.codes, found.seen)
        documents = owners[rows]
        first = self.layout.half[documents] == 0
        at = self.layout.domain[documents[first]] * self.n_latents + latents[first]
        self.active += torch.bincount(at, minlength=self.active.numel()).view_as(self.active)

    def _entries(self, number: int, codes: Codes, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        rows, latents, values = entries_of(codes, seen.touched)
        return rows, latents + self.begins[number], values

    def _units(self, number: int, codes: Codes) -> Tensor:
        """What each value has to be multiplied with to be a mass: its sign, and what one unit moves the output."""
        return codes.values.sign() * weights_of(self.saes[number])[codes.indices.long()]

    def _add_positions(self, number: int, seen: Seen) -> None:
        first = self.layout.half[seen.documents] == 0
        domain = torch.where(first, self.layout.domain[seen.documents], -1)
        if number == 0:
            self.positions += torch.bincount(domain[first], minlength=len(self.positions))
        if self.moments:
            x, y = seen.rows(seen.x), seen.rows(seen.y)
            for place, moments in enumerate(self.moments[number]):
                own = (domain == place).to(x.device)
                moments.add(x[own], y[own] if moments.paired else None)

    def totals(self, kind: str) -> Tensor:
        """[2, D, F]: of all groups."""
        return self.sums[kind].sum(1)

    def of_layer(self, number: int, values: Tensor) -> Tensor:
        """[..., F] narrowed to the latents of one layer."""
        return values[..., self.begins[number] : self.begins[number + 1]]

    def l0(self, number: int | None = None) -> float:
        """Active latents per touched position of the first half, of one layer or of all."""
        active = self.active if number is None else self.of_layer(number, self.active)
        return int(active.sum()) / max(1, int(self.positions.sum()))
