"""The passes of a breadth study: probes are fitted on half of the documents, and spliced on the other half."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.passes.two_passes import Advance
from saekernels.eval.text.batches import Batch, batches
from saekernels.eval.text.documents import Document
from saekernels.eval.text.slices import LEVELS, Slices, alternate, levels_of
from saekernels.eval.text.windows import Tokens, Window, chosen
from saekernels.sae.module import SAE
from saekernels.sae.probes import AffineProbe, Moments, fit_probes
from saekernels.splice.context import splice
from saekernels.splice.sites import has_two_ends

Key = tuple[str, str, str]
"""(where a probe was fitted, "rank R" or "sae", "inside", "outside" or a domain)."""

# Beyond every level.
_OUTSIDE = 127


class Text:
    """Windows with the slice of each position; even documents are fitted on, odd ones measured."""

    def __init__(
        self, documents: Iterable[Document], tokens: Tokens, slices: Slices, wanted: int | None, seed: int
    ) -> None:
        self.windows: list[Window] = []
        self.domains: list[str] = []
        self.levels: dict[tuple[int, int], np.ndarray] = {}
        for document, windows in chosen(documents, tokens, wanted, seed):
            self.domains.append(document.domain)
            for window, level in zip(windows, levels_of(document, windows, slices, tokens), strict=True):
                self.windows.append(window)
                self.levels[window.document, window.start] = level
        self.half = alternate(self.domains)

    def fitting(self, window: Window) -> bool:
        """Whether probes are fitted on this window; others are measured."""
        return self.half[window.document]

    def level(self, batch: Batch) -> Tensor:
        """[B, S] int8: the slice of each position; padding is outside of all."""
        made = torch.full(batch.ids.shape, _OUTSIDE, dtype=torch.int8)
        for row, window in enumerate(batch.windows):
            made[row, : len(window.ids)] = torch.from_numpy(self.levels[window.document, window.start])
        return made


@dataclass(frozen=True)
class Job:
    """One splice: what stands at the site, fitted where, spliced and measured at which positions."""

    fitted: str
    method: str
    replacement: Any
    where: str
    level: int = len(LEVELS) - 1

    def mask(self, levels: Tensor, touched: Tensor) -> Tensor:
        """bool [B, S]: where it is spliced, of the slice of each position and those that may be touched."""
        if self.where == "inside":
            return touched & (levels <= self.level)
        if self.where == "outside":
            return touched & (levels > self.level)
        return touched


def jobs_of(
    levels: Mapping[str, Moments], by_domain: Mapping[str, Moments], ranks: Sequence[int], sae: SAE
) -> list[Job]:
    """What is to be measured: probes of each rank and the SAE at each slice, the widest probe for each domain."""

    def probes(moments: Moments) -> dict[int, AffineProbe]:
        widest = min(sae.d_in, sae.d_out)
        fitted = fit_probes(moments, sorted({min(rank, widest) for rank in ranks}))
        return {rank: probe.to(sae.W_dec.device) for rank, probe in fitted.items()}

    jobs = []
    for level, moments in levels.items():
        number = LEVELS.index(level)
        methods: dict[str, Any] = {f"rank {rank}": probe for rank, probe in probes(moments).items()}
        for method, replacement in {**methods, "sae": sae}.items():
            sides = ("inside", "outside") if level != LEVELS[-1] else ("inside",)
            jobs += [Job(level, method, replacement, side, number) for side in sides]
    everything = levels["everything"]
    widest = f"rank {max(probes(everything))}"
    for domain, moments in {**by_domain, "everything": everything}.items():
        if moments.count:
            jobs.append(Job(domain, widest, list(probes(moments).values())[-1], "domains"))
    return [*jobs, Job("everything", "sae", sae, "domains")]


class Runner:
    """Forward passes over either half."""

    def __init__(
        self, model: Any, head: Head, site: str, sae: SAE, text: Text, batch_size: int, device: torch.device
    ) -> None:
        self.model, self.head, self.site, self.sae, self.text = model, head, site, sae, text
        self.batch_size, self.device = batch_size, device

    def batches(self, fitting: bool) -> Iterator[Batch]:
        """Batches of the half that probes are fitted on, or of the other."""
        own = [window for window in self.text.windows if self.text.fitting(window) is fitting]
        context = max((len(window.ids) for window in own), default=2)
        return batches(own, self.batch_size, context)

    def fit(self, advance: Advance) -> tuple[list[Moments], dict[str, Moments]]:
        """Moments of each slice, and of each domain, over the first half."""
        paired = self.sae.d_out if has_two_ends(self.site) else None
        shells = [Moments(self.sae.d_in, paired) for _ in LEVELS]
        domains = {name: Moments(self.sae.d_in, paired) for name in sorted(set(self.text.domains))}
        for batch in self.batches(True):
            level = torch.where(batch.touched, self.text.level(batch), _OUTSIDE)
            owner = [self.text.domains[window.document] for window in batch.windows]

            def observe(
                site: str, x: Tensor, x_hat: Tensor, y: Tensor, *_: Any, level: Any = level, owner: Any = owner
            ) -> None:
                shape = (*level.shape, -1)
                x, y = x.reshape(shape), y.reshape(shape)
                for number, moments in enumerate(shells):
                    own = level == number
                    moments.add(x[own], y[own] if paired else None)
                for row, name in enumerate(owner):
                    own = level[row] < _OUTSIDE
                    domains[name].add(x[row][own], y[row][own] if paired else None)

            nothing = torch.ones_like(batch.touched)
            with splice(self.model, {self.site: self.sae}, replace="zero", untouched=nothing, observer=observe):
                self.head.body(batch.ids.to(self.device))
            advance(batch.positions)
        nested = [shells[0]]
        for shell in shells[1:]:
            nested.append(nested[-1] + shell)
        return nested, domains

    def measure(self, jobs: Sequence[Job], advance: Advance) -> dict[Key, np.ndarray]:
        """Per key, [documents, 3]: predictions, clean CE and spliced CE, over the second half."""
        count = len(self.text.domains)
        sums: dict[Key, np.ndarray] = {}
        for batch in self.batches(False):
            level = self.text.level(batch)
            clean = self.head.hidden(batch.ids.to(self.device), batch.rows)
            advance(batch.positions)
            for job in jobs:
                mask = job.mask(level, batch.touched)
                predicted = mask.reshape(-1)[batch.rows]
                advance(batch.positions)
                if not bool(predicted.any()):
                    continue
                with self._splice(job.replacement, ~mask):
                    hidden = self.head.hidden(batch.ids.to(self.device), batch.rows[predicted])
                at = predicted.to(clean.device)
                found = self.head.compare(clean[at], hidden, batch.targets[predicted])
                rows = torch.stack([torch.ones_like(found[0]), found[0], found[1]], 1).double().cpu().numpy()
                owners = batch.documents[predicted].numpy()
                for key, own in self._keys(job, owners):
                    np.add.at(sums.setdefault(key, np.zeros((count, 3))), owners[own], rows[own])
        return sums

    def _keys(self, job: Job, owners: np.ndarray) -> Iterator[tuple[Key, np.ndarray]]:
        if job.where != "domains":
            yield (job.fitted, job.method, job.where), np.ones(len(owners), dtype=bool)
            return
        domains = np.asarray(self.text.domains)[owners]
        for domain in np.unique(domains):
            yield (job.fitted, job.method, str(domain)), domains == domain

    def _splice(self, replacement: Any, untouched: Tensor) -> contextlib.AbstractContextManager[Any]:
        return splice(self.model, {self.site: replacement}, untouched=untouched)
