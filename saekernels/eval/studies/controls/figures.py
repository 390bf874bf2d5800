"""From losses per document to figures: ΔCE of each splice, paired differences, what SAEs of one site share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from saekernels.display.numbers import Interval
from saekernels.eval.passes.plan import site_of
from saekernels.eval.studies.controls.seeds import Activity, activity_matches, decoder_matches
from saekernels.eval.studies.family import Family, equivalents
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.sums.figures import finite
from saekernels.eval.text.batches import Batch

CLEAN = ("", "clean")
Key = tuple[str, str]
"""(entry, run); CLEAN for the model as it is."""


class Losses:
    """Sums of cross-entropy per document and run. Every figure and every interval sees the same resampled documents."""

    def __init__(self, entries: Sequence[str], documents: int, runs: Sequence[str]) -> None:
        self.keys: list[Key] = [CLEAN, *itertools.product(entries, runs)]
        self.counts = np.zeros(documents)
        self.sums = {key: np.zeros(documents) for key in self.keys}
        self._drawn: dict[tuple[int, int], np.ndarray] = {}

    def add(self, entry: str, run: str, batch: Batch, figures: Sequence[Tensor]) -> None:
        """figures: clean and spliced cross-entropy [n] of the batch's predictions."""
        owners = batch.documents.numpy()
        if (entry, run) == self.keys[1]:
            np.add.at(self.counts, owners, 1.0)
            np.add.at(self.sums[CLEAN], owners, figures[0].double().cpu().numpy())
        np.add.at(self.sums[entry, run], owners, figures[1].double().cpu().numpy())

    @property
    def tokens(self) -> int:
        """How many predictions count."""
        return int(self.counts.sum())

    def ce(self, key: Key) -> float | None:
        """Mean cross-entropy in nats."""
        return finite(float(self.sums[key].sum() / self.counts.sum()))

    def difference(self, a: Key, b: Key, samples: int, seed: int) -> tuple[float | None, Interval | None]:
        """Mean cross-entropy of a minus that of b, in nats, with its paired 95 % interval over documents."""
        value = finite(float((self.sums[a] - self.sums[b]).sum() / self.counts.sum()))
        own = self.counts > 0
        if value is None or not samples or own.sum() < 2:
            return value, None
        if (samples, seed) not in self._drawn:
            table = np.column_stack([self.counts, *self.sums.values()])[own]
            self._drawn[samples, seed] = resample_totals(table, samples, (seed, 11))
        drawn = self._drawn[samples, seed]
        first, second = (1 + self.keys.index(key) for key in (a, b))
        return value, percentiles((drawn[:, first] - drawn[:, second]) / drawn[:, 0])

    def run_figures(self, entry: str, samples: int, seed: int) -> dict[str, dict[str, Any]]:
        """Of each run of an entry: its CE, ΔCE, and how much less it costs than the SAE's output alone (paired)."""
        made: dict[str, dict[str, Any]] = {}
        for key in self.keys:
            if key[0] == entry:
                delta, interval = self.difference(key, CLEAN, samples, seed)
                made[key[1]] = {"ce": self.ce(key), "delta_ce": delta, "ci95": interval}
                if key[1] != "sae":
                    saved, saved_interval = self.difference((entry, "sae"), key, samples, seed)
                    made[key[1]] |= {"saved": saved, "saved_ci95": saved_interval}
        return made

    def worth(
        self, family: Family, digests: Sequence[str], samples: int, seed: int
    ) -> tuple[dict[Key, dict[str, Any]], list[str]]:
        """What the losses of finite runs are worth in a family, by run; and notes.

        Raises InputError if the family was measured on none of the documents.
        """
        own = np.flatnonzero(self.counts).tolist()
        means = {key: (sums[own] / self.counts[own]) for key, sums in self.sums.items()}
        usable = {" ".join(key): one.tolist() for key, one in means.items() if np.isfinite(one).all()}
        counts = self.counts[own].astype(int).tolist()
        found, notes = equivalents(family, usable, [digests[i] for i in own], counts, samples, seed)
        return {key: asdict(found[" ".join(key)]) for key in self.keys if " ".join(key) in found}, notes


def seed_figures(
    group: Sequence[str],
    saes: Mapping[str, Any],
    losses: Losses,
    on: Mapping[str, Activity],
    off: Mapping[str, Activity],
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """SAEs of one site beside each other, JSON-ready: spread of ΔCE, paired differences, and shared latents.

    on, off: what is active on the measured text, and on another one (empty for none).
    """
    deltas = {entry: losses.difference((entry, "sae"), CLEAN, samples, seed) for entry in group}
    values = np.array([np.nan if value is None else value for value, _ in deltas.values()])
    widths = [interval[1] - interval[0] for _, interval in deltas.values() if interval is not None]
    pairs = []
    for a, b in itertools.combinations(group, 2):
        active = (on[a].counts() > 0, on[b].counts() > 0)
        decoder, matched = decoder_matches(saes[a], saes[b], active)
        value, interval = losses.difference((b, "sae"), (a, "sae"), samples, seed)
        activity = {"on": activity_matches(on[a], on[b], matched)}
        if off:
            activity["off"] = activity_matches(off[a], off[b], matched)
        pairs.append({"a": a, "b": b, "b_minus_a": value, "ci95": interval, "decoder": decoder, "activity": activity})
    return {
        "site": site_of(group[0]),
        "delta_ce": {entry: {"nats": value, "ci95": interval} for entry, (value, interval) in deltas.items()},
        "range": finite(float(np.ptp(values))),
        "sd": finite(float(np.std(values, ddof=1))),
        "interval_width": float(np.mean(widths)) if len(widths) == len(group) else None,
        "pairs": pairs,
    }
