"""Do the features of two layers compose? Downstream latents predicted from upstream ones, and what splicing them costs.

If upstream features are the variables of a causal model, a map from them to the downstream features that was fitted on
one distribution should hold on another. Maps are fitted on half of the documents and measured on the other half.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.display.numbers import Interval
from saekernels.errors import InputError
from saekernels.eval.passes.calls import trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.moments import fixed_k
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.passes.two_passes import Advance, Progress
from saekernels.eval.studies.latent_maps import LatentMap, LatentMoments, fit_map, select_dense
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.text.batches import Batch, batches
from saekernels.eval.text.documents import Document
from saekernels.eval.text.slices import alternate
from saekernels.eval.text.windows import Tokens, Window, chosen
from saekernels.parallel.devices import input_device
from saekernels.sae.codes import Codes
from saekernels.sae.module import SAE
from saekernels.splice.context import splice

EVERYTHING = "everything"
_MOST_LATENTS = 4096


@dataclass(frozen=True)
class MapFigures:
    """One map: what it was fitted on, and the ΔCE of its predictions inside that distribution and outside; nats.

    method: "N entries" per downstream latent, "mean latents", or "the SAE itself" (nothing is predicted).
    explained: share of the latents' variance, on the text it was fitted on.
    """

    fitted_on: str
    method: str
    explained: float | None
    inside: float | None
    inside_ci95: Interval | None
    outside: float | None
    outside_ci95: Interval | None


class _Maps:
    """The passes of one measurement."""

    def __init__(
        self, model: Any, upstream: tuple[str, SAE], downstream: tuple[str, SAE], tokens: Tokens, batch_size: int
    ) -> None:
        self.model, self.head, self.batch_size, self.tokens = model, find_head(model), batch_size, tokens
        (self.site_a, self.sae_a), (self.site_b, self.sae_b) = upstream, downstream
        self.device = input_device(model)
        self.seen: Codes | None = None

    def check(self) -> None:
        """InputError unless the upstream site comes first and the downstream SAE needs nothing of its input."""
        if self.sae_b.normalization is not None:
            raise InputError(f"maps: the SAE at {self.site_b} undoes a normalisation of its input, which is predicted")
        ids = trial_ids(self.model, self.head.vocabulary, self.tokens.context)
        check_head(self.model, self.head, ids)
        sites = {self.site_a: self.sae_a, self.site_b: self.sae_b}
        try_sites(self.model, self.head.body, sites, ids, self.batch_size)
        order: list[str] = []
        with splice(self.model, sites, observer=lambda site, *_: order.append(site)):
            self.head.body(ids)
        if order != [self.site_a, self.site_b]:
            raise InputError(f"maps: {self.site_a!r} must come before {self.site_b!r} in the model; it runs {order}")

    def codes(self, batch: Batch) -> tuple[Codes, Codes]:
        """Codes of both SAEs on the clean activations."""
        found: dict[str, Codes] = {}

        def look(sae: SAE, site: str) -> Any:
            def keep(x: Tensor, y: Tensor) -> Tensor:
                found[site] = sae.encode(x.to(sae.W_dec))
                return y

            return keep

        sites = {self.site_a: look(self.sae_a, self.site_a), self.site_b: look(self.sae_b, self.site_b)}
        with splice(self.model, sites, replace="function"):
            self.head.body(batch.ids.to(self.device))
        return found[self.site_a], found[self.site_b]

    def active(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """The latents that take part: the most active ones of each SAE, ascending."""
        counts = [torch.zeros(sae.n_latents, dtype=torch.int64) for sae in (self.sae_a, self.sae_b)]
        for batch in self._batches(windows):
            for total, codes in zip(counts, self.codes(batch), strict=True):
                flat = codes.to_csr()
                total += torch.bincount(flat.indices[flat.values != 0].long().cpu(), minlength=len(total))
        picked = [total.topk(min(_MOST_LATENTS, int((total > 0).sum()))).indices.sort().values for total in counts]
        return picked[0], picked[1]

    def moments(self, windows: Sequence[Window], sources: Tensor, targets: Tensor) -> LatentMoments:
        made = LatentMoments(sources, targets, self.sae_a.n_latents, self.sae_b.n_latents)
        for batch in self._batches(windows):
            a, b = self.codes(batch)
            own = batch.touched.reshape(-1)
            made.add(select_dense(a, sources).cpu()[own], select_dense(b, targets).cpu()[own])
        return made

    def losses(self, windows: Sequence[Window], found: LatentMap | None, documents: int, k: int) -> np.ndarray:
        """[documents, 3]: predictions, clean CE and CE with the predicted (None: the SAE's own) latents spliced in."""
        sums = np.zeros((documents, 3))

        def look(x: Tensor, y: Tensor) -> Tensor:
            self.seen = self.sae_a.encode(x.to(self.sae_a.W_dec))
            return y

        def put(x: Tensor, y: Tensor) -> Tensor:
            if found is None:
                return self.sae_b(x.to(self.sae_b.W_dec)).to(y)
            assert self.seen is not None
            rows = select_dense(self.seen, found.sources)
            return self.sae_b.decode(found.codes(rows, k, y.shape[:-1], self.sae_b.W_dec.dtype)).to(y)

        for batch in self._batches(windows):
            ids = batch.ids.to(self.device)
            clean = self.head.hidden(ids, batch.rows)
            sites: dict[str, Any] = {self.site_a: look, self.site_b: put}
            with splice(self.model, sites, replace="function", untouched=~batch.touched):
                spliced = self.head.hidden(ids, batch.rows)
            ce = self.head.compare(clean, spliced, batch.targets)
            rows = torch.stack([torch.ones_like(ce[0]), ce[0], ce[1]], 1).double().cpu().numpy()
            np.add.at(sums, batch.documents.numpy(), rows)
        return sums

    def _batches(self, windows: Sequence[Window]) -> Any:
        return batches(windows, self.batch_size, max((len(w.ids) for w in windows), default=2))


def measure_maps(
    model: Any,
    tokens: Tokens,
    upstream: tuple[str, SAE],
    downstream: tuple[str, SAE],
    documents: Iterable[Document],
    *,
    domain: str | None = None,
    entries: Sequence[int] = (1, 32),
    wanted: int | None = None,
    batch_size: int = 8,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fit maps on one domain and on everything, splice their predictions at the downstream site, and measure.

    Args:
        upstream, downstream: (site, SAE); the upstream site comes first in the model, and nothing is changed there.
        domain: what is *inside*; default the domain with the most text.
        entries: upstream latents per downstream latent, one map for each; 1 is the degenerate control.

    Returns the figures JSON-ready. Raises InputError for sites in the wrong order or a domain without documents.
    """
    maps = _Maps(model, upstream, downstream, tokens, batch_size)
    with torch.inference_mode():
        maps.check()
        names: list[str] = []
        windows: list[Window] = []
        for document, own in chosen(documents, tokens, wanted, seed):
            names.append(document.domain)
            windows += own
        domain = domain or max(set(names), key=lambda name: sum(names[w.document] == name for w in windows))
        if names.count(domain) < 2:
            raise InputError(f"maps: the domain {domain!r} has {names.count(domain)} documents here, need two or more")
        half = alternate(names)
        fit = [w for w in windows if half[w.document]]
        test = [w for w in windows if not half[w.document]]
        inner = [w for w in fit if names[w.document] == domain]
        steps = Advance(progress, 2 * len(fit) + len(inner) + len(test) * (2 * len(entries) + 3))
        sources, targets = maps.active(fit)
        steps(len(fit))
        k = fixed_k(maps.sae_b) or _mean_l0(maps, fit)
        rows: list[MapFigures] = []
        own_domain = np.array([name == domain for name in names])
        for label, part in ((domain, inner), (EVERYTHING, fit)):
            moments = maps.moments(part, sources, targets)
            steps(len(part))
            for count in (0, *sorted(set(entries))) if label == domain else sorted(set(entries)):
                found = fit_map(moments, count)
                sums = maps.losses(test, found, len(names), k)
                steps(len(test))
                method = f"{count} {'entry' if count == 1 else 'entries'}" if count else "mean latents"
                rows.append(_row(label, method, found.explained, sums, own_domain, bootstrap, seed))
        sums = maps.losses(test, None, len(names), k)
        steps(len(test))
        rows.append(_row("-", "the SAE itself", None, sums, own_domain, bootstrap, seed))
    return {
        "upstream": upstream[0],
        "downstream": downstream[0],
        "domain": domain,
        "latents": {"upstream": len(sources), "downstream": len(targets), "predicted_active": k},
        "rows": [asdict(row) for row in rows],
    }


def _mean_l0(maps: _Maps, windows: Sequence[Window]) -> int:
    batch = next(iter(maps._batches(windows)))
    _, codes = maps.codes(batch)
    return max(1, round(float(codes.l0().reshape(-1)[batch.touched.reshape(-1)].double().mean())))


def _row(
    fitted: str, method: str, explained: float | None, sums: np.ndarray, own: np.ndarray, samples: int, seed: int
) -> MapFigures:
    inside, outside = (_delta(sums[side], samples, seed) for side in (own, ~own))
    return MapFigures(fitted, method, explained, *inside, *outside)


def _delta(rows: np.ndarray, samples: int, seed: int) -> tuple[float | None, Interval | None]:
    rows = rows[rows[:, 0] > 0]
    if not len(rows):
        return None, None
    total = rows.sum(0)
    interval = None
    if samples and len(rows) > 1:
        drawn = resample_totals(rows, samples, (seed, 6))
        interval = percentiles((drawn[:, 2] - drawn[:, 1]) / drawn[:, 0])
    return float((total[2] - total[1]) / total[0]), interval
