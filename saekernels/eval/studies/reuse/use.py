"""What each latent does in each domain, in sums: how active it is, and what the loss would be without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.eval.passes.left import over
from saekernels.eval.studies.reuse.marks import Marks
from saekernels.eval.studies.reuse.slices import SliceSums
from saekernels.eval.studies.reuse.text import Layout
from saekernels.eval.studies.site_passes import Passes, Seen, entries_of, weights_of
from saekernels.eval.text.batches import Batch
from saekernels.sae.codes import Codes
from saekernels.sae.probes import Moments
from saekernels.splice.sites import has_two_ends

KINDS = ("effect", "mass")


def gradient_times_activation(
    passes: Passes, batch: Batch, entry: str, seen: Seen, clean: Tensor
) -> tuple[Codes, Tensor]:
    """The SAE's codes at a site, and -z * dL/dz of each entry, in nats and in their shape.

    With the SAE spliced in there alone: to first order, how much the loss rises without the entry. L is the sum of the
    cross-entropies of the batch's predictions; clean [n, d]: the final states of the model as it is.
    """
    sae = passes.saes[entry]
    x_hat, codes = sae.forward_with_codes(seen.x.to(sae.W_dec))
    with torch.enable_grad():
        values = codes.values.detach().requires_grad_()
        # 0 with a gradient, so that skip connections and rounding are those of the SAE.
        nothing = sae.decode(replace(codes, values=values)) - sae.decode(codes)
        hidden = passes.plant(batch, entry, seen, wide_like(x_hat, seen) + nothing)
        losses = passes.head.compare(clean, hidden, batch.targets).ce_q
        if not losses.requires_grad:
            raise InputError(f"model: effects need gradients, and none come back from its loss to the site {entry!r}")
        (slope,) = torch.autograd.grad(losses.sum(), values)
    return codes, -(values.detach() * slope)


def effect_of(first_order: Tensor) -> Tensor:
    """To second order, a + a^2 / 2 of a = -z * dL/dz: a^2 estimates the curvature (the empirical Fisher information).

    A model that is trained has little slope left along its own latents: what a removal costs is mostly curvature.
    """
    return first_order + first_order.square() / 2


def wide_like(values: Tensor, seen: Seen) -> Tensor:
    """The values in at least fp32 and the precision of what they stand in for."""
    return values.to(torch.promote_types(torch.promote_types(values.dtype, seen.y.dtype), torch.float32))


class Use:
    """Sums over the text for one SAE, of a size that does not depend on how long it is.

    sums: effect and mass, each [2, G, D, F] fp64 by half, group of documents, domain and latent. A latent's mass is the
    sum of |z| times what one unit of z moves the output. first_order [G, F] fp64: -z * dL/dz, over the second half.
    active [D, F] int64: positions of the first half at which a latent is active; positions [D] int64: those that are
    touched there. moments: by domain, of what the site reads in the first half, and of what is replaced where that is
    another. slices: by kind, what latents do in slices and random sets, where the text has those.
    """

    def __init__(self, sae: Any, layout: Layout, site: str, moments: bool, marks: Marks | None = None) -> None:
        self.sae, self.layout = sae, layout
        domains = len(layout.domains)
        shape = (2, layout.groups, domains, sae.n_latents)
        self.sums = {kind: torch.zeros(shape, dtype=torch.float64) for kind in KINDS}
        self.first_order = torch.zeros(layout.groups, sae.n_latents, dtype=torch.float64)
        self.active = torch.zeros(domains, sae.n_latents, dtype=torch.int64)
        self.positions = torch.zeros(domains, dtype=torch.int64)
        second = sae.d_out if has_two_ends(site) else None
        self.moments = [Moments(sae.d_in, second) for _ in layout.domains] if moments else []
        kinds = KINDS if marks is not None else ()
        self.slices = {kind: SliceSums(cast(Marks, marks), layout, sae.n_latents) for kind in kinds}

    def add(self, seen: Seen, codes: Codes, first_order: Tensor, shells: tuple[Tensor, Tensor] | None = None) -> None:
        """What `gradient_times_activation` found in one batch; shells: [B, S] each, as `Text.shells` gives them."""
        owners = torch.full(seen.touched.shape, -1)
        owners[seen.touched] = seen.documents
        both = {"mass": codes.values * self._units(codes), "effect": effect_of(first_order)}
        for kind, values in both.items():
            rows, latents, own = entries_of(replace(codes, values=values), seen.touched)
            flat = self.layout.cells(owners.reshape(-1)[rows]) * self.sae.n_latents + latents
            self.sums[kind].view(-1).index_add_(0, flat, own.double().cpu())
            if shells is not None:
                inner, drawn = (over(one, seen.touched.shape).reshape(-1)[rows] for one in shells)
                self.slices[kind].add(owners.reshape(-1)[rows], inner, drawn, latents, own.double().cpu())
        self._add_first_order(replace(codes, values=first_order), seen, owners)
        rows, latents, _ = entries_of(codes, seen.touched)
        documents = owners.reshape(-1)[rows]
        first = self.layout.half[documents] == 0
        at = self.layout.domain[documents[first]] * self.sae.n_latents + latents[first]
        self.active += torch.bincount(at, minlength=self.active.numel()).view_as(self.active)
        self._add_positions(seen)

    def _add_first_order(self, codes: Codes, seen: Seen, owners: Tensor) -> None:
        rows, latents, values = entries_of(codes, seen.touched)
        documents = owners.reshape(-1)[rows]
        second = self.layout.half[documents] == 1
        flat = self.layout.group[documents[second]] * self.sae.n_latents + latents[second]
        self.first_order.view(-1).index_add_(0, flat, values.double().cpu()[second])

    def _units(self, codes: Codes) -> Tensor:
        """What each value has to be multiplied with to be a mass: its sign, and what one unit moves the output."""
        return codes.values.sign() * weights_of(self.sae)[codes.indices.long()]

    def _add_positions(self, seen: Seen) -> None:
        first = self.layout.half[seen.documents] == 0
        domain = torch.where(first, self.layout.domain[seen.documents], -1)
        self.positions += torch.bincount(domain[first], minlength=len(self.positions))
        if self.moments:
            x, y = seen.rows(seen.x), seen.rows(seen.y)
            for number, moments in enumerate(self.moments):
                own = (domain == number).to(x.device)
                moments.add(x[own], y[own] if moments.paired else None)

    def totals(self, kind: str) -> Tensor:
        """[2, D, F] fp64: of all groups."""
        return self.sums[kind].sum(1)

    def l0(self) -> float:
        """Active latents per touched position of the first half."""
        return int(self.active.sum()) / max(1, int(self.positions.sum()))
