"""Forward passes of a replaced model over batches: the half that is fitted on, and every run on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.eval.passes.head_kinds import Head, Together
from saekernels.eval.passes.left import Calls, SiteNorms, over
from saekernels.eval.studies.crosslayer.earlier import Earlier
from saekernels.eval.studies.crosslayer.fits import Fits
from saekernels.eval.studies.crosslayer.runs import Runs
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.eval.studies.crosslayer.totals import Totals, columns_of, unsure
from saekernels.eval.sums.accumulate import DocumentSums
from saekernels.eval.text.batches import Batch
from saekernels.ops import LinearCeKl
from saekernels.parallel.devices import input_device
from saekernels.sae.codes import Codes


class Clean:
    """What one clean pass holds: of each layer of the subject what it reads, the MLP's output, and what is touched.

    hidden: final states [n, d] at the batch's rows; masks: [B, S] by site, or None where `batch.touched` is each one's.
    """

    def __init__(self, left: SiteNorms, subject: Subject, batch: Batch) -> None:
        calls: Calls = []

        def observe(site: str, x: Tensor, x_hat: Tensor, y: Tensor, *_: Any) -> None:
            if site in subject.sites:
                # A copy, because what comes after may change it in place.
                calls.append((site, x.clone(), y.clone()))
            elif left.rule.norm is not None:
                calls.append((site, x, y))

        with left.looking(batch, observe):
            self.hidden = left.head.hidden(batch.ids.to(input_device(left.model)), batch.rows)
        self.masks = left.masks(batch, calls)
        own = {site: (x, y) for site, x, y in calls if site in subject.sites}
        if len([site for site, *_ in calls if site in subject.sites]) > len(own):
            raise InputError(
                f"{subject.name}: one of its sites runs more than once in a pass, so no one value is there"
            )
        self.reads = [own[site][0] for site in subject.sites]
        self.writes = [own[site][1] for site in subject.sites]
        touched = [batch.touched if self.masks is None else self.masks[site] for site in subject.sites]
        self.touched = [over(one, x.shape[:-1]) for one, x in zip(touched, self.reads, strict=True)]

    @property
    def untouched(self) -> dict[str, Tensor] | None:
        """The masks as `splice` takes them."""
        return None if self.masks is None else {site: ~mask for site, mask in self.masks.items()}


class Passes:
    """Makes them, with what they add up to."""

    def __init__(self, left: SiteNorms, subject: Subject, beside: Subject | None) -> None:
        self.left, self.subject, self.beside = left, subject, beside
        self.head: Head = left.head

    def fit(self, batch: Batch, parts: Tensor, fits: Fits, count: bool) -> None:
        """One clean pass; parts [B]: `Fits.part` of each window; count: latents are counted as well."""
        clean = Clean(self.left, self.subject, batch)
        everywhere = torch.stack(clean.touched).all(0)
        for part in parts.unique().tolist():
            kept = everywhere & over((parts == part)[:, None].expand(batch.ids.shape), everywhere.shape)
            if not kept.any():
                continue
            reads = [x[kept.to(x.device)] for x in clean.reads]
            fits.add(part, reads, [y[kept.to(y.device)] for y in clean.writes])
            named = part < len(fits.domains) and self.subject.causal
            if named or count:
                codes = self.subject.encode_all(reads)
                if named:
                    fits.meet(part, codes)
                if count:
                    fits.count([one.l0() for one in codes])

    def fit_earlier(self, batch: Batch, earlier: Earlier) -> None:
        """One clean pass of the second kind."""
        clean = Clean(self.left, self.subject, batch)
        kept = torch.stack(clean.touched).all(0)
        reads, writes = ([one[kept.to(one.device)] for one in group] for group in (clean.reads, clean.writes))
        earlier.add(reads, writes)

    def run(
        self, batch: Batch, runs: Runs, documents: DocumentSums, totals: Totals, advance: Callable[[], None]
    ) -> None:
        """All runs on one batch, their figures added to `documents` and `totals`; advance() after each pass."""
        clean = Clean(self.left, self.subject, batch)
        advance()
        codes = self._forced(clean, totals)
        columns = columns_of(runs.names)
        at = {key: number for number, key in enumerate(columns)}
        rows = torch.zeros(len(batch.rows), len(columns), dtype=torch.float64)
        chosen: list[Tensor] = []

        def take(name: str, found: LinearCeKl) -> None:
            if not chosen:
                chosen.append(unsure(self.head, clean.hidden, found.ce_p, batch.targets).double())
                _fill(rows, at, "clean", {"ce": found.ce_p, "unsure": chosen[0]})
            agree = found.top1_agree.cpu().double()
            figures = {"ce": found.ce_q, "kl": found.kl, "agree": agree, "agree_unsure": agree * chosen[0]}
            _fill(rows, at, name, figures)

        together = Together(self.head, clean.hidden, batch.targets, take)
        untouched = ~batch.touched if clean.masks is None else clean.untouched
        ids = batch.ids.to(input_device(self.left.model))
        for name in runs.names:
            observer = self._observer(name, clean, totals)
            with runs.splice(self.left.model, name, codes, clean.reads, untouched, observer):
                together.add(name, self.head.hidden(ids, batch.rows))
            advance()
        together.flush()
        totals.not_finite = totals.not_finite + (~torch.isfinite(rows)).sum(0)
        documents.add(batch.documents, batch.context, batch.targets, batch.nbytes, rows)

    def _forced(self, clean: Clean, totals: Totals) -> list[Codes | None]:
        """The codes of the clean model, and how well they reconstruct there."""
        codes: list[Codes | None] = [*self.subject.encode_all(clean.reads)]
        for number, (x, y, touched) in enumerate(zip(clean.reads, clean.writes, clean.touched, strict=True)):
            x_hat = self.subject.write(number, codes, x).to(y.device)
            totals.stats["teacher_forced"][number].add(x_hat, y, codes[number], touched)
        if "shared" in totals.stats:
            everywhere = torch.stack([one.cpu() for one in clean.touched]).all(0)
            fired, active = self.subject.distinct(codes, everywhere)
            totals.stats["shared"][0].count(fired, active, int(everywhere.sum()))
        return codes

    def _observer(self, name: str, clean: Clean, totals: Totals) -> Any:
        if name == "joint":
            layers: Mapping[str, int] = {site: number for number, site in enumerate(self.subject.sites)}
        elif name == "beside" and self.beside is not None:
            layers = {site: number for number, site in enumerate(self.beside.sites)}
        else:
            return None

        def observe(site: str, x: Tensor, x_hat: Tensor, y: Tensor, codes: Any, touched: Tensor) -> None:
            number = layers[site]
            totals.stats[name][number].add(x_hat, y, codes, touched)
            if name == "joint":
                totals.stats["drift"][number].add(x_hat, clean.writes[number], None, touched)

        return observe


def _fill(rows: Tensor, at: Mapping[tuple[str, str], int], run: str, figures: Mapping[str, Tensor]) -> None:
    for name, values in figures.items():
        rows[:, at[run, name]] = values.detach().to("cpu", torch.float64)
