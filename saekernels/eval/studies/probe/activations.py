"""What probes read: activations of whole texts, their reconstruction, and the SAE's latents, one row a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.passes.left import CleanRuns, SiteNorms
from saekernels.eval.passes.plan import site_of
from saekernels.eval.passes.two_passes import Advance
from saekernels.eval.text.batches import batches
from saekernels.eval.text.windows import Window
from saekernels.sae.module import SAE
from saekernels.splice.leave import Leave

Position = Literal["last", "mean"]
POSITIONS: dict[Position, str] = {
    "last": "the last token of a text that is not special",
    "mean": "the mean over the tokens of a text that are not special, without the first position and what the rule for "
    "positions left as they are names",
}


@dataclass(frozen=True)
class Latents:
    """Values that are not zero: of which text (rows [nnz] int64), which latent (columns [nnz] int64), how much."""

    rows: Tensor
    columns: Tensor
    values: Tensor
    n_latents: int

    def dense(self, chosen: Sequence[int], texts: int) -> Tensor:
        """[texts, chosen] fp64: the columns of those latents."""
        made = torch.zeros(texts, len(chosen), dtype=torch.float64)
        for number, latent in enumerate(chosen):
            own = self.columns == latent
            made[self.rows[own], number] = self.values[own]
        return made

    def best(self, positive: np.ndarray, fitted: np.ndarray, most: int) -> list[int]:
        """The latents that tell the classes apart best on the texts `fitted` [texts] bool, and on no others.

        By |difference of the class means| over the standard deviation within the classes; of equals the first. Latents
        whose means do not differ are left out.
        """
        kept = torch.from_numpy(fitted)[self.rows]
        rows, columns, values = self.rows[kept], self.columns[kept], self.values[kept]
        labels = torch.from_numpy(positive)
        counts = torch.tensor([int((fitted & ~positive).sum()), int((fitted & positive).sum())], dtype=torch.float64)
        at = columns * 2 + labels[rows].long()
        sums = torch.zeros(self.n_latents * 2, dtype=torch.float64).index_add_(0, at, values).view(-1, 2)
        squares = torch.zeros(self.n_latents * 2, dtype=torch.float64).index_add_(0, at, values**2).view(-1, 2)
        means = sums / counts
        within = (squares - counts * means**2).sum(1).clamp_min(0) / (counts.sum() - 2).clamp_min(1)
        apart = (means[:, 1] - means[:, 0]).abs()
        # Exact separation: no spread within the classes, but for rounding.
        score = torch.where(apart > 0, apart / within.sqrt().clamp_min(1e-12), 0.0)
        order = torch.sort(score, descending=True, stable=True).indices[: min(most, self.n_latents)]
        return [int(latent) for latent in order if score[latent] > 0]


@dataclass(frozen=True)
class Features:
    """Of n texts at one site: activations and reconstruction [n, d_out] fp32, and the latents."""

    activations: Tensor
    reconstruction: Tensor
    latents: Latents

    @property
    def error(self) -> Tensor:
        """[n, d_out]: what the SAE leaves of the activations."""
        return self.activations - self.reconstruction

    @property
    def fvu(self) -> float | None:
        """The fraction of the variance between texts that the SAE leaves unexplained; None where they do not vary."""
        total = float((self.activations - self.activations.mean(0)).double().square().sum())
        left = float(self.error.double().square().sum()) / total if total else np.nan
        return left if np.isfinite(left) else None


def features_of(
    model: Any,
    head: Head,
    saes: Mapping[str, SAE],
    windows: Sequence[Window],
    position: Position,
    rule: Leave,
    batch_size: int,
    advance: Advance,
) -> dict[str, Features]:
    """Entry -> what the clean model has there; one window a text, numbered by `document` from 0.

    Where an SAE reads one place and replaces another (a transcoder), activations are those that it replaces.
    """
    made: dict[str, Features] = {}
    longest = max(len(window.ids) for window in windows)
    parts = list(batches(windows, batch_size, longest, max(1, rule.first)))
    for entries in _rounds(saes):
        sites = {site: saes[entry] for site, entry in entries.items()}
        collected = {site: _Collected(sae, len(windows)) for site, sae in sites.items()}
        left = SiteNorms(model, head, sites, rule)
        for batch, _, calls in CleanRuns(left, parts, False, advance):
            texts = torch.tensor([window.document for window in batch.windows])
            for site, x, y in calls:
                collected[site].add(x, y, _pick(left.touched(batch, site, x, y), position), texts)
        made |= {entries[site]: one.features() for site, one in collected.items()}
    return made


def passes(saes: Mapping[str, SAE], rule: Leave) -> int:
    """How many passes `features_of` makes: as many as the site with most SAEs has, twice where norms are needed."""
    return len(_rounds(saes)) * (1 if rule.norm is None else 2)


def _rounds(saes: Mapping[str, SAE]) -> list[dict[str, str]]:
    """site -> entry, every entry once, no site twice in a round."""
    found: list[dict[str, str]] = []
    for entry in saes:
        site = site_of(entry)
        free = next((one for one in found if site not in one), None)
        if free is None:
            found.append(free := {})
        free[site] = entry
    return found


def _pick(kept: Tensor, position: Position) -> Tensor:
    """bool [B, S]: the positions that count for a text, of those that may."""
    if position == "mean":
        return kept
    places = torch.arange(kept.shape[1]).expand_as(kept)
    last = torch.where(kept, places, -1).amax(1, keepdim=True)
    return kept & (places == last)


class _Collected:
    """What an SAE makes of the positions that count, averaged for each text."""

    def __init__(self, sae: SAE, texts: int) -> None:
        self.sae = sae
        self.activations = torch.zeros(texts, sae.d_out, dtype=torch.float64)
        self.reconstruction = torch.zeros(texts, sae.d_out, dtype=torch.float64)
        self.latents: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor, pick: Tensor, texts: Tensor) -> None:
        """x [B, S, d_in] is read, y [B, S, d_out] replaced; pick [B, S] bool; texts [B] int64, their numbers."""
        for text in texts[pick.sum(1) == 0].tolist():
            raise InputError(f"labels: text {text + 1} has no position left; see --leave-first and --leave-norm")
        at = pick.reshape(-1).to(x.device)
        own = texts.repeat_interleave(pick.sum(1))
        share = (1 / pick.sum(1).double()).repeat_interleave(pick.sum(1))
        read, replaced = (one.reshape(-1, one.shape[-1])[at] for one in (x, y))
        x_hat, codes = self.sae.forward_with_codes(read.to(self.sae.W_dec))
        for sums, values in ((self.activations, replaced), (self.reconstruction, x_hat)):
            sums.index_add_(0, own, values.double().cpu() * share[:, None])
        flat = codes.to_csr()
        assert flat.offsets is not None
        rows = torch.arange(flat.tokens).repeat_interleave(flat.offsets.diff().cpu())
        keys = own[rows] * self.sae.n_latents + flat.indices.long().cpu()
        unique, place = keys.unique(return_inverse=True)
        values = torch.zeros(len(unique), dtype=torch.float64)
        values.index_add_(0, place, flat.values.double().cpu() * share[rows])
        on = values != 0
        self.latents.append((unique[on] // self.sae.n_latents, unique[on] % self.sae.n_latents, values[on]))

    def features(self) -> Features:
        """Everything, once all texts have been added."""
        rows, columns, values = (torch.cat(part) for part in zip(*self.latents, strict=True))
        latents = Latents(rows, columns, values, self.sae.n_latents)
        return Features(self.activations.float(), self.reconstruction.float(), latents)
