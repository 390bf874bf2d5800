"""The first pass: means and second moments of each site in the clean model, and how active the SAEs are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.passes.left import SiteNorms, over
from saekernels.eval.passes.plan import site_of
from saekernels.eval.sums.row_groups import RowGroups
from saekernels.eval.text.batches import Batch
from saekernels.parallel.devices import input_device
from saekernels.sae.activations import AbsTopK, GroupMax, TopK
from saekernels.sae.module import SAE
from saekernels.sae.probes import Moments
from saekernels.splice.sites import has_two_ends


class Collector:
    """Moments of what each site reads and what is replaced there, over touched positions of the clean run.

    left: the sites, and which positions stay as they are. second: sites whose second moments are wanted as well.
    """

    def __init__(self, saes: Mapping[str, SAE], left: SiteNorms, second: bool) -> None:
        self.saes, self.left = dict(saes), left
        self.moments = {
            site: Moments(sae.d_in, sae.d_out if has_two_ends(site) else None, second=second)
            for site, sae in left.sites.items()
        }
        self._groups = {site: RowGroups(moments.add) for site, moments in self.moments.items()}
        self.active = {entry: 0 for entry, sae in saes.items() if fixed_k(sae) is None}
        # Of each site: positions that were replaced, and those that were left for their norm alone.
        self.touched = {site: torch.zeros(2, dtype=torch.int64) for site in left.sites}
        self.rows = dict.fromkeys(left.sites, 0)

    def add(self, batch: Batch, count_active: bool) -> None:
        """One clean run of a batch; `count_active`: SAEs without a fixed k also encode it."""

        def observe(site: str, x: Tensor, x_hat: Tensor, target: Tensor, *_: Any) -> None:
            touched = self.left.touched(batch, site, x, target)
            self.touched[site] = self.touched[site] + torch.stack([touched.sum(), (batch.touched & ~touched).sum()])
            read, replaced = (_rows(touched, one) for one in (x, target))
            self._groups[site].add(read, replaced if self.moments[site].paired else None)
            if count_active:
                self.rows[site] += int(touched.sum())
                self._count_active(site, read)

        with self.left.looking(batch, observe):
            self.left.head.body(batch.ids.to(input_device(self.left.model)))

    def _count_active(self, site: str, rows: Tensor) -> None:
        for entry in self.active:
            if site_of(entry) == site and len(rows):
                sae = self.saes[entry]
                self.active[entry] += int(sae.encode(rows.to(sae.W_dec)).l0().sum())

    def flush(self) -> None:
        """Count in the rows that still wait for others; to be called before the sums are read."""
        for groups in self._groups.values():
            groups.flush()

    def ranks(self) -> dict[str, int]:
        """Entry -> rank of the probe that is matched to it: its k, or its mean L0 on the first text, at least 1."""
        rows = {entry: max(1, self.rows[site_of(entry)]) for entry in self.active}
        counted = {entry: max(1, round(total / rows[entry])) for entry, total in self.active.items()}
        return {entry: min(fixed_k(sae) or counted[entry], sae.d_in, sae.d_out) for entry, sae in self.saes.items()}

    def state(self) -> dict[str, Any]:
        """Everything, to be saved and given to `load`."""
        moments = {site: one.state() for site, one in self.moments.items()}
        return {"moments": moments, "active": dict(self.active), "rows": dict(self.rows), "touched": self.touched}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of the same sites; what was seen before is forgotten."""
        for site, moments in self.moments.items():
            moments.load(state["moments"][site])
        self.active = dict(state["active"])
        rows = state["rows"]  # a single number in run folders of 0.1, which knew no rule that leaves positions
        self.rows = dict(rows) if isinstance(rows, dict) else dict.fromkeys(self.moments, rows)
        self.touched = dict(state.get("touched", self.touched))

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another collector of the same sites has seen."""
        for site, moments in self.moments.items():
            moments.merge(state["moments"][site])
        self.active = {entry: count + state["active"][entry] for entry, count in self.active.items()}
        self.rows = {site: count + state["rows"][site] for site, count in self.rows.items()}
        self.touched = {site: count + state["touched"][site] for site, count in self.touched.items()}


def fixed_k(sae: SAE) -> int | None:
    """Latents that the SAE selects of every token, or None if that depends on the token."""
    activation = sae.activation
    return activation.k if isinstance(activation, TopK | AbsTopK | GroupMax) else None


def _rows(touched: Tensor, activation: Tensor) -> Tensor:
    """[n, width]: the activation at touched positions [B, S]."""
    return activation[over(touched.to(activation.device), activation.shape[:-1])]
