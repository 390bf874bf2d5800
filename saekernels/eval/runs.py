"""The run table: which forward passes are made on a batch, and what each gives.

Per batch: one clean pass; for each target (every site alone, then all sites together) one pass with the SAEs spliced
in, one with zeros and one with means in their place. Before that, one clean pass over all batches gives the means.
Runs of a target start at its first site where the model allows (see `reuse`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saekernels.sae import SAE
from saekernels.splice import splice

from .accumulate import LossSums, Means, SiteStats
from .batches import Batch
from .errors import InputError, first_line
from .head import Head
from .reuse import check_reuse, find_reuse, no_reuse

ALL = "all"


@dataclass
class Target:
    """What is replaced together: one site, or all of them; with the sums that its runs fill."""

    name: str
    saes: Mapping[str, SAE]
    losses: LossSums
    stats: dict[str, SiteStats] = field(default_factory=dict)


def make_targets(saes: Mapping[str, SAE], means: Mapping[str, Tensor], documents: int) -> list[Target]:
    """Every site alone and, if there are several, all together under the name "all"."""
    return [
        Target(name, group, LossSums(documents), {s: SiteStats(sae.n_latents, means[s]) for s, sae in group.items()})
        for name, group in _groups(saes).items()
    ]


def _groups(saes: Mapping[str, SAE]) -> dict[str, dict[str, SAE]]:
    groups = {site: {site: sae} for site, sae in saes.items()}
    return {**groups, ALL: dict(saes)} if len(groups) > 1 else groups


def passes(sites: int) -> int:
    """Forward passes over the tokens: one for the means, one clean, three per target."""
    return 2 + 3 * (sites + (sites > 1))


class Runner:
    """Makes the forward passes of one evaluation. The model is in eval mode; gradients are off."""

    def __init__(self, model: Any, head: Head, saes: Mapping[str, SAE], device: torch.device) -> None:
        self.model = model
        self.head = head
        self.saes = dict(saes)
        self.device = device
        self.reuse = no_reuse("not asked for")

    def probe(self, ids: Tensor, reuse_layers: bool = True) -> None:
        """A trial run of every SAE on a few tokens, ids [B, S]; it also finds out whether clean layers can be reused.

        Raises InputError for an unknown site, an SAE of the wrong width, or a site that never runs.
        """
        for site, sae in self.saes.items():
            try:
                with splice(self.model, {site: sae}) as active:
                    self.head.body(ids)
            except (ValueError, TypeError, RuntimeError) as error:
                raise InputError(first_line(error)) from error
            if not active.calls[site]:
                kind = type(self.model).__name__
                raise InputError(f"site {site!r}: it never runs in the body of {kind}, before the output head")
        if reuse_layers:
            self._probe_reuse(ids)

    def _probe_reuse(self, ids: Tensor) -> None:
        groups = _groups(self.saes)

        def run(target: str) -> Tensor:
            with splice(self.model, groups[target]):
                return self.head.body(ids)

        found = find_reuse(self.model, {name: list(group) for name, group in groups.items()})
        self.reuse = check_reuse(found, lambda: self.head.body(ids), run)

    def collect_means(self, batches: Iterator[Batch], advance: Callable[[int], None]) -> dict[str, Tensor]:
        """Mean of what each site would replace, over touched positions of a clean pass: [d_out] fp32."""
        means = Means()
        for batch in batches:
            # Everything is left untouched, so this is the clean run and the sites are only looked at.
            nothing = torch.ones_like(batch.touched)

            def observe(site: str, x: Tensor, x_hat: Tensor, target: Tensor, *_: Any, batch: Batch = batch) -> None:
                means.add(site, target, _like_positions(batch.touched, target).to(target.device))

            with splice(self.model, self.saes, replace="zero", untouched=nothing, observer=observe):
                self.head.body(batch.ids.to(self.device))
            advance(batch.positions)
        return {site: mean.float() for site, mean in means.result().items()}

    def run(
        self, batch: Batch, targets: Sequence[Target], means: Mapping[str, Tensor], advance: Callable[[int], None]
    ) -> None:
        """All passes on one batch; adds its losses and statistics to the targets."""
        with self.reuse.recording():
            clean = self.head.hidden(batch.ids.to(self.device), batch.rows)
        advance(batch.positions)
        for target in targets:
            spliced = self._hidden(batch, target, "sae", means, advance)
            ce_clean, ce_spliced, kl, agree = self.head.compare(clean, spliced, batch.targets)
            zero = self._hidden(batch, target, "zero", means, advance)
            mean = self._hidden(batch, target, "mean", means, advance)
            # One call gives the losses of both ablations; its KL, of one ablation from the other, is not used.
            ce_zero, ce_mean, _, _ = self.head.compare(zero, mean, batch.targets)
            target.losses.add(batch.documents, (ce_clean, ce_spliced, ce_zero, ce_mean, kl, agree))

    def _hidden(
        self, batch: Batch, target: Target, replace: Any, means: Mapping[str, Tensor], advance: Callable[[int], None]
    ) -> Tensor:
        def observe(site: str, x: Tensor, x_hat: Tensor, y: Tensor, codes: Any, touched: Tensor) -> None:
            target.stats[site].add(x_hat, y, codes, touched)

        watch = observe if replace == "sae" else None
        untouched = ~batch.touched
        active = splice(self.model, target.saes, replace=replace, means=means, untouched=untouched, observer=watch)
        with self.reuse.skipping(target.name), active:
            hidden = self.head.hidden(batch.ids.to(self.device), batch.rows)
        advance(batch.positions)
        return hidden


def _like_positions(touched: Tensor, activation: Tensor) -> Tensor:
    """The mask [B, S] in the shape of an activation's leading dimensions: [B, S], [B * S] or [B, S, heads]."""
    lead = activation.shape[:-1]
    if touched.numel() == lead.numel():
        return touched.reshape(lead)
    return touched.unsqueeze(-1).expand(lead)
