"""One SAE of a study: what is fitted for it on one half of the text, and what is measured of it on the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.passes.moments import fixed_k
from saekernels.eval.passes.plan import site_of
from saekernels.eval.studies.controls.bits import CodeLength, ProbeLength, Sizes, gaussian_bits, quantised
from saekernels.eval.studies.controls.error import ErrorMap, ErrorScores, columns_of
from saekernels.eval.studies.site_passes import Seen
from saekernels.eval.sums.accumulate import SiteStats
from saekernels.eval.sums.figures import finite
from saekernels.sae.codes import Codes
from saekernels.sae.probes import Moments, fit_probes
from saekernels.splice.sites import has_two_ends


class Entry:
    """An SAE at its site.

    documents: of the whole text. The figures of reconstruction are kept for the runs "sae", "quantised" and "pca".
    """

    def __init__(self, name: str, sae: Any, documents: int) -> None:
        self.name, self.sae = name, sae
        self.sizes = Sizes.of(sae.n_latents)
        self.scores = ErrorScores(documents)
        self.stats: dict[str, SiteStats] = {}

    def encode(self, seen: Seen) -> tuple[Tensor, Codes]:
        """(the SAE's output [..., d_out], its codes) for what the site reads, as a splice would have them."""
        out, codes = self.sae.forward_with_codes(seen.x.to(self.sae.W_dec))
        return out, codes

    def fit(self, errors: Sequence[Moments], replaced: Moments, spread: float, rise: float) -> None:
        """The linear maps, the steps and the probe.

        errors: moments of x and the columns of `columns_of`, in folds; replaced: moments of x and of what is replaced,
        whose columns have variances that add up to `spread`.
        """
        device = self.sae.W_dec.device
        self.map = ErrorMap(errors).to(device)
        self.length = CodeLength(self.sae, self.sizes, rise)
        rank = fixed_k(self.sae) or max(1, round(int(self.sizes.count.sum()) / replaced.count))
        self.rank = min(rank, self.sae.d_in, self.sae.d_out)
        probe = fit_probes(replaced, [self.rank])[self.rank].to(device)
        self.probe, self.replaced = ProbeLength(probe, replaced, spread, rise), replaced
        self.stats = {run: SiteStats(self.sae.n_latents, replaced.mean_out) for run in ("sae", "quantised", "pca")}

    def replacements(self, seen: Seen, runs: Sequence[str]) -> tuple[dict[str, Tensor], Codes]:
        """What each run puts in at the site, [..., d_out] in fp32 or more; and the codes. Counts what is measured."""
        x_hat, codes = self.encode(seen)
        wide = torch.promote_types(torch.promote_types(x_hat.dtype, seen.y.dtype), torch.float32)
        x, y, x_hat = seen.x.to(x_hat.device), seen.y.to(x_hat.device, wide), x_hat.to(wide)
        made = {"sae": x_hat}
        if "whole" in runs:
            error, predicted = y - x_hat, self.map.predict(x).to(wide)
            made |= {"linear": x_hat + predicted, "remainder": x_hat + (error - predicted), "whole": x_hat + error}
            self.scores.add(self.map, seen.rows(x), seen.rows(error), seen.documents)
        if "quantised" in runs:
            changed = self.sae.decode(quantised(self.sae, codes, self.length.step)) - self.sae.decode(codes)
            made |= {"quantised": x_hat + changed.to(wide), "pca": self.probe.add(x, seen.touched).to(wide)}
            self.length.add(codes, seen.touched)
        for run in self.stats.keys() & made.keys():
            touched = seen.touched.to(y.device)
            self.stats[run].add(made[run], y, codes if run == "sae" else None, touched)
        return made, codes

    def figures(self, runs: Sequence[str]) -> dict[str, Any]:
        """JSON-ready, without losses: sizes, and "bits" by method where the runs have them."""
        exact = self.stats["sae"]
        made: dict[str, Any] = {
            "site": self.name, "architecture": self.sae.architecture, "n_latents": self.sae.n_latents,
            "l0": finite(exact.l0), "fvu": finite(exact.fvu),
        }  # fmt: skip
        if "quantised" in runs:
            fvu = {"sae": self.stats["quantised"].fvu, "pca": self.stats["pca"].fvu}
            gaussian = dict.fromkeys(fvu)
            if not has_two_ends(site_of(self.name)):
                gaussian = {method: gaussian_bits(self.replaced, one) for method, one in fvu.items()}
            lengths = {"sae": self.length.figures(), "pca": {"total": self.probe.bits()}}
            steps = {"sae": self.length.step, "pca": self.probe.step}
            numbers = {"sae": finite(exact.l0), "pca": self.rank}
            made["bits"] = {
                method: {"numbers": numbers[method], "fvu": finite(fvu[method]), "step": steps[method],
                         "bits": lengths[method], "gaussian_bits": gaussian[method]}
                for method in fvu
            }  # fmt: skip
        return made


class SiteFit:
    """Moments of what a site reads and of the errors of all SAEs there, over the half that is fitted on; fp64.

    They are kept in two folds of documents. fold: of each document of the text, False or True.
    """

    def __init__(self, site: str, entries: Sequence[Entry], fold: Sequence[bool]) -> None:
        first = entries[0].sae
        self.entries, self.paired, self.fold = entries, has_two_ends(site), torch.tensor(fold)
        # Of transcoders, what is replaced stands in the last columns.
        width = sum(entry.sae.d_out + 2 for entry in entries) + (first.d_out if self.paired else 0)
        self.moments = [Moments(first.d_in, width) for _ in range(2)]
        self.squares = torch.zeros(first.d_out, dtype=torch.float64)

    def add(self, seen: Seen) -> None:
        """One batch."""
        columns = []
        for entry in self.entries:
            x_hat, codes = entry.encode(seen)
            error = seen.rows(seen.y.to(x_hat.device)).double() - seen.rows(x_hat).double()
            entry.sizes.add(entry.sae, codes, seen.touched, error)
            columns.append(columns_of(error).cpu())
        replaced = seen.rows(seen.y).double().cpu()
        if self.paired:
            columns.append(replaced)
        self.squares += replaced.square().sum(0)
        x, y, second = seen.rows(seen.x).cpu(), torch.cat(columns, 1), self.fold[seen.documents]
        for moments, own in zip(self.moments, (~second, second), strict=True):
            moments.add(x[own], y[own])

    def finish(self, rise: float) -> None:
        """Fit what is fitted of every entry."""
        both, start = self.moments[0] + self.moments[1], 0
        replaced = both.part(slice(len(both.sum_y) - len(self.squares), None) if self.paired else None)
        spread = float((self.squares / both.count - replaced.mean_out.square()).clamp_min(0).sum())
        for entry in self.entries:
            stop = start + entry.sae.d_out + 2
            entry.fit([one.part(slice(start, stop)) for one in self.moments], replaced, spread, rise)
            start = stop
