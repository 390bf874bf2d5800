"""The passes of maps between latents: what two sites hold in the clean model, and what a prediction costs there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.eval.passes.calls import trial_ids
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.left import SiteNorms
from saekernels.eval.passes.trial import try_sites
from saekernels.eval.store.window_files import early_windows
from saekernels.eval.studies.latent_maps import LatentMap, LatentMoments, select_dense
from saekernels.eval.studies.site_passes import entries_of
from saekernels.eval.text.batches import Batch, batches
from saekernels.eval.text.windows import Tokens, Window
from saekernels.parallel.devices import input_device
from saekernels.sae.codes import Codes
from saekernels.sae.module import SAE
from saekernels.splice.context import splice
from saekernels.splice.leave import Leave

_MOST_LATENTS = 4096


class MapPasses:
    """The passes of one measurement.

    Positions that the rule leaves at either site are neither fitted on nor replaced.
    """

    def __init__(
        self,
        model: Any,
        upstream: tuple[str, SAE],
        downstream: tuple[str, SAE],
        tokens: Tokens,
        batch_size: int,
        rule: Leave,
    ) -> None:
        self.model, self.head, self.batch_size, self.tokens = model, find_head(model), batch_size, tokens
        (self.site_a, self.sae_a), (self.site_b, self.sae_b) = upstream, downstream
        self.device = input_device(model)
        self.left = SiteNorms(model, self.head, dict([upstream, downstream]), rule)
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

    def find_medians(self, windows: Sequence[Window]) -> None:
        """One clean pass over the first of the text, for the norms that the rule is about."""
        for batch in self._batches(early_windows(windows)) if self.left.rule.norm is not None else ():
            self.left.add(batch)

    def codes(self, batch: Batch) -> tuple[Codes, Codes, Tensor]:
        """Codes of both SAEs on the clean activations, and [B, S] bool of the positions that count."""
        found: dict[str, Codes] = {}
        touched = batch.touched

        def look(sae: SAE, site: str) -> Any:
            def keep(x: Tensor, y: Tensor) -> Tensor:
                nonlocal touched
                found[site] = sae.encode(x.to(sae.W_dec))
                touched = touched & self.left.touched(batch, site, x, y)
                return y

            return keep

        sites = {self.site_a: look(self.sae_a, self.site_a), self.site_b: look(self.sae_b, self.site_b)}
        with splice(self.model, sites, replace="function"):
            self.head.body(batch.ids.to(self.device))
        return found[self.site_a], found[self.site_b], touched

    def active(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """The latents that take part: the most active ones of each SAE, ascending."""
        counts = [torch.zeros(sae.n_latents, dtype=torch.int64) for sae in (self.sae_a, self.sae_b)]
        for batch in self._batches(windows):
            *both, touched = self.codes(batch)
            for total, codes in zip(counts, both, strict=True):
                _, latents, _ = entries_of(codes, touched)
                total += torch.bincount(latents, minlength=len(total))
        picked = [total.topk(min(_MOST_LATENTS, int((total > 0).sum()))).indices.sort().values for total in counts]
        return picked[0], picked[1]

    def moments(self, windows: Sequence[Window], sources: Tensor, targets: Tensor) -> LatentMoments:
        """What maps from sources [A] to targets [B] are fitted from."""
        made = LatentMoments(sources, targets, self.sae_a.n_latents, self.sae_b.n_latents)
        for batch in self._batches(windows):
            a, b, touched = self.codes(batch)
            own = touched.reshape(-1)
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
            clean, masks = self.left.run_clean(batch)
            touched = batch.touched if masks is None else masks[self.site_a] & masks[self.site_b]
            sites: dict[str, Any] = {self.site_a: look, self.site_b: put}
            with splice(self.model, sites, replace="function", untouched=~touched):
                spliced = self.head.hidden(batch.ids.to(self.device), batch.rows)
            ce = self.head.compare(clean, spliced, batch.targets)
            rows = torch.stack([torch.ones_like(ce[0]), ce[0], ce[1]], 1).double().cpu().numpy()
            np.add.at(sums, batch.documents.numpy(), rows)
        return sums

    def mean_l0(self, windows: Sequence[Window]) -> int:
        """How many downstream latents are active at a position of the first batch, at least 1."""
        batch = next(iter(self._batches(windows)))
        _, codes, touched = self.codes(batch)
        return max(1, round(float(codes.l0().reshape(-1)[touched.reshape(-1)].double().mean())))

    def _batches(self, windows: Sequence[Window]) -> Iterator[Batch]:
        longest = max((len(w.ids) for w in windows), default=2)
        return batches(windows, self.batch_size, longest, self.left.rule.first)
