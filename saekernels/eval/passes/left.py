"""Which positions keep their activation in every run: attention sinks, told by the norms of the clean run.

The limit of a site is a ratio times the median of its norms over the first text, and the clean run decides: so all runs
on a batch leave the same positions of a site, and what is left at one site does not depend on the other sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.text.batches import Batch
from saekernels.parallel.devices import input_device
from saekernels.splice.context import splice
from saekernels.splice.leave import Leave, Norms


class SiteNorms:
    """Medians of the norms at each site of the clean model, over touched positions.

    Args:
        sites: site -> SAE, any of the site's.
    """

    def __init__(self, model: Any, head: Head, sites: Mapping[str, Any], rule: Leave) -> None:
        self.model, self.head, self.sites, self.rule = model, head, dict(sites), rule
        self.norms = {site: Norms() for site in sites}

    def add(self, batch: Batch) -> None:
        """One clean run of a batch."""

        def observe(site: str, x: Tensor, x_hat: Tensor, target: Tensor, *_: Any) -> None:
            self.norms[site].add(x, target, over(batch.touched, target.shape[:-1]))

        with self.looking(batch, observe):
            self.head.body(batch.ids.to(input_device(self.model)))

    def touched(self, batch: Batch, site: str, x: Tensor, target: Tensor) -> Tensor:
        """[B, S] bool on the CPU: positions that are replaced at the site, of the clean run's activations there."""
        if self.rule.norm is None:
            return batch.touched
        far = self.norms[site].outlying(x, target, self.rule.norm).cpu()
        if far.numel() > batch.touched.numel():
            far = far.any(-1)
        return batch.touched & ~far.reshape(batch.touched.shape)

    def run_clean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Final hidden states of the clean run at the batch's rows, and [B, S] of what is touched at each site.

        None in place of the masks where `batch.touched` is that of every site.
        """
        ids = batch.ids.to(input_device(self.model))
        if self.rule.norm is None:
            return self.head.hidden(ids, batch.rows), None
        masks: dict[str, Tensor] = {}

        def observe(site: str, x: Tensor, x_hat: Tensor, target: Tensor, *_: Any) -> None:
            # A module that runs twice in a pass is left where either call says so.
            masks[site] = masks.get(site, batch.touched) & self.touched(batch, site, x, target)

        with self.looking(batch, observe):
            hidden = self.head.hidden(ids, batch.rows)
        return hidden, masks

    def limits(self) -> dict[str, list[float]]:
        """Site -> the norm above which a position is left, of what is read and of what is replaced."""
        ratio = self.rule.norm
        if ratio is None:
            return {}
        return {site: [ratio * one.read.value, ratio * one.replaced.value] for site, one in self.norms.items()}

    def looking(self, batch: Batch, observer: Any) -> Any:
        """A splice that leaves everything as it is, so that the run is the clean one and the sites are only seen."""
        nothing = torch.ones_like(batch.touched)
        return splice(self.model, self.sites, replace="zero", untouched=nothing, observer=observer)

    def state(self) -> dict[str, Any]:
        """Everything, to be saved and given to `load`."""
        return {site: one.state() for site, one in self.norms.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of the same sites; what was seen before is forgotten."""
        for site, one in self.norms.items():
            one.load(state[site])

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one of the same sites has seen."""
        for site, one in self.norms.items():
            one.merge(state[site])


def over(mask: Tensor, lead: Iterable[int]) -> Tensor:
    """A mask [B, S] over positions [B, S], [B * S] or [B, S, heads]."""
    shape = torch.Size(lead)
    return mask.reshape(shape) if mask.numel() == shape.numel() else mask.unsqueeze(-1).expand(shape)


def rule_text(rule: Leave) -> str:
    """The rule in a sentence, to stand beside the mask; "" for none."""
    parts = []
    if rule.first:
        parts.append(f"the first {rule.first} of each window" if rule.first > 1 else "the first of each window")
    if rule.norm is not None:
        parts.append(f"those whose norm at a site exceeds {rule.norm:g} times the site's median in the clean run")
    return f" Left as they are, in every run: {' and '.join(parts)}." if parts else ""
