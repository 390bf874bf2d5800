"""Do latents of two layers that are linked in one domain stay linked in others? Maps fitted by domain, tried in all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saekernels.eval.passes.plan import site_of
from saekernels.eval.passes.two_passes import Advance
from saekernels.eval.studies.latent_maps import LatentMoments, fit_map, select_dense
from saekernels.eval.studies.reuse.sharing import as_json
from saekernels.eval.studies.reuse.text import Layout, Text
from saekernels.eval.studies.site_passes import Passes
from saekernels.eval.sums.jackknife import estimate, leave_one_out
from saekernels.eval.text.batches import Batch

ENTRIES = (1, 8)
"""Upstream latents that a downstream latent is predicted from: pairs, and small sets."""
_MOST_LATENTS = 4096
# Positions of the first half at which a downstream latent must be active, in both domains of a pair.
_ACTIVE = 20


class Slopes(NamedTuple):
    """A map without its constant: weights [B, m] of the sources [B, m]."""

    sources: Tensor
    weights: Tensor


class Errors:
    """Squared errors over the second half of the text, fp64, of M maps into B downstream latents.

    errors [G, D, M, B]: of each map in each domain; spread [G, D, B]: of no map, the domain's own mean. Constants are
    the domain's own, of its first half: what a map brings from elsewhere are its slopes.
    """

    def __init__(self, layout: Layout, maps: list[Slopes], means: list[tuple[Tensor, Tensor]]) -> None:
        self.maps, self.means = maps, means
        front, targets = (layout.groups, len(layout.domains)), len(means[0][1])
        self.errors = torch.zeros(*front, len(maps), targets, dtype=torch.float64)
        self.spread = torch.zeros(*front, targets, dtype=torch.float64)

    def add(self, group: int, domain: int, a: Tensor, b: Tensor) -> None:
        """Dense values a [n, A], b [n, B] at positions of that domain and group."""
        mean_a, mean_b = self.means[domain]
        a, b = a - mean_a, b - mean_b
        # The error of a linear map is a form in second moments: no prediction [n, B] for each map.
        within, between, spread = a.T @ a, a.T @ b, b.square().sum(0)
        self.spread[group, domain] += spread
        every = torch.arange(b.shape[1])[:, None]
        for number, (at, weights) in enumerate(self.maps):
            linear = (weights * between[at, every]).sum(1)
            square = torch.einsum("bi,bij,bj->b", weights, within[at[:, :, None], at[:, None, :]], weights)
            self.errors[group, domain, number] += spread - 2 * linear + square


def measure_links(
    passes: Passes, ends: tuple[str, str], text: Text, active: Mapping[str, Tensor], seed: int, advance: Advance
) -> dict[str, Any]:
    """Maps from the latents of one site to those of the next, fitted in each domain and measured in all; JSON-ready.

    passes: of the two sites; active: by entry [D, F], positions of the first half at which a latent is active. Codes
    are of the clean model. Memory: twice A^2 + A B floats for at most 4,096 latents of each that take part.
    """
    layout = text.layout
    sources, targets = (_most_active(active[entry]) for entry in ends)
    sizes = passes.saes[ends[0]].n_latents, passes.saes[ends[1]].n_latents
    whole = LatentMoments(sources, targets, *sizes)
    maps: dict[tuple[int, str, int], Slopes] = {}
    means = []
    mixed = _moved(len(targets), seed)

    def look(batch: Batch) -> tuple[Tensor, Tensor]:
        seen, _ = passes.look(batch)
        both = [seen[site_of(entry)] for entry in ends]
        own = (both[0].touched & both[1].touched).reshape(-1)
        dense = []
        for one, entry, latents in zip(both, ends, (sources, targets), strict=True):
            sae = passes.saes[entry]
            dense.append(select_dense(sae.encode(one.x.to(sae.W_dec)), latents).float().cpu()[own])
        advance(batch.positions)
        return dense[0], dense[1]

    for number in range(len(layout.domains)):
        moments = LatentMoments(sources, targets, *sizes)
        for batch in text.batches(0, number):
            moments.add(*look(batch))
        means.append(((moments.sum_a / moments.count).float(), (moments.sum_b / moments.count).float()))
        for entries in ENTRIES:
            own = fit_map(moments, entries)
            permuted = fit_map(moments, entries, chosen=own.indices[mixed])
            maps[entries, "own", number] = Slopes(own.indices, own.weights)
            maps[entries, "permuted", number] = Slopes(permuted.indices, permuted.weights)
        whole.merge(moments)
    for entries in ENTRIES:
        one = fit_map(whole, entries)
        maps[entries, "everything", 0] = Slopes(one.indices, one.weights)
    del whole, moments
    found = Errors(layout, list(maps.values()), means)
    for group, domain, batch in text.cells(1):
        found.add(group, domain, *look(batch))
    common = active[ends[1]][:, targets] >= _ACTIVE
    places = {key: at for at, key in enumerate(maps)}
    return {
        "upstream": ends[0],
        "downstream": ends[1],
        "latents": {"upstream": len(sources), "downstream": len(targets)},
        "in_both": float(_pairs((common[:, None] & common).sum(-1).double().numpy()[None])[0]),
        "maps": [_map_figures(found, places, entries, common, layout) for entries in ENTRIES],
    }


def _most_active(active: Tensor) -> Tensor:
    """Ascending: the latents that take part, of counts [D, F]."""
    total = active.sum(0)
    return total.topk(min(_MOST_LATENTS, int((total > 0).sum()))).indices.sort().values


def _moved(count: int, seed: int) -> Tensor:
    """[count] int64: a permutation in which nothing stays where it is, drawn by the seed."""
    order = torch.from_numpy(np.random.default_rng((seed, 31)).permutation(count))
    moved = torch.empty_like(order)
    moved[order] = order.roll(1)
    return moved


def _map_figures(
    found: Errors, places: Mapping[tuple[int, str, int], int], entries: int, common: Tensor, layout: Layout
) -> dict[str, Any]:
    """Explained variance in each domain, over the downstream latents [D, B] that are active in both of a pair."""
    domains = range(len(layout.domains))
    many: dict[str, list[np.ndarray]] = {name: [] for name in ("own", "home", "permuted", "everything")}
    for errors, spread in zip(leave_one_out(found.errors), leave_one_out(found.spread), strict=True):
        tables = {name: np.zeros((len(domains), len(domains))) for name in many}
        for a in domains:
            for b in domains:
                kept = common[a] & common[b]
                whole = spread[b, kept].sum()
                keys = {"own": ("own", a), "home": ("own", b), "permuted": ("permuted", a)}
                keys["everything"] = ("everything", 0)
                for name, key in keys.items():
                    at = places[entries, key[0], key[1]]
                    tables[name][a, b] = 1 - float(errors[b, at, kept].sum() / whole)
        for name, table in tables.items():
            many[name].append(table)
    stacked = {name: np.stack(rows) for name, rows in many.items()}
    home, away, chance, everything = (_pairs(stacked[name]) for name in ("home", "own", "permuted", "everything"))
    part = np.where(home > 0, away / np.where(home > 0, home, 1), np.nan)
    means = {"home": home, "away": away, "kept": part, "everything": everything, "chance": chance}
    return {
        "entries": entries,
        **{name: as_json(estimate(values.tolist())) for name, values in means.items()},
        "matrix": [[as_json(estimate(stacked["own"][:, a, b].tolist())) for b in domains] for a in domains],
    }


def _pairs(tables: np.ndarray) -> np.ndarray:
    """[n]: the means of what lies off the diagonals of [n, D, D]."""
    count = tables.shape[1]
    return (tables.sum((1, 2)) - tables.trace(axis1=1, axis2=2)) / (count * (count - 1))
