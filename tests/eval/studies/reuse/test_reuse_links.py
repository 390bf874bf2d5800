"""Links between two sites by dense codes and plain least squares: fitted on one half, measured on the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny_lm
from left_by_hand import replaced
from reuse_by_hooks import saes, spliced, text
from saekernels.eval.studies.latent_maps import LatentMoments, fit_map
from saekernels.eval.studies.reuse import links
from saekernels.eval.studies.reuse.measure import measure_reuse
from saekernels.eval.studies.reuse.options import Options
from saekernels.eval.sums.jackknife import estimate
from saekernels.splice.leave import Leave
from tiny_lm import SITES, texts, tokens

RULE = Leave(1, 1.1)
ACTIVE = 12
Rows = list[tuple[int, int, int, np.ndarray, np.ndarray]]


def dense() -> tuple[Rows, list[np.ndarray]]:
    """(half, group, domain, upstream [n, F], downstream [n, F]) of each window at positions that both sites replace;
    of each site [D, F], at how many of its own positions of the first half a latent is active."""
    windows, layout = text()
    masks = replaced(tiny_lm.trained_model(), windows, SITES, RULE.first, RULE.norm)
    assert any(not torch.equal(one[SITES[0]], one[SITES[1]]) for one in masks)
    active = [np.zeros((len(layout.domains), 64)) for _ in SITES]
    rows: Rows = []
    for window, mask in zip(windows, masks, strict=True):
        half, group, domain = (int(of[window.document]) for of in (layout.half, layout.group, layout.domain))
        codes = []
        for site, counts in zip(SITES, active, strict=True):
            with torch.no_grad():
                z = saes()[site].encode(spliced(window, site, lambda x: x)[1]).to_dense()
            counts[domain] += (half == 0) * (z[mask[site]] != 0).sum(0).numpy()
            codes.append(z[mask[SITES[0]] & mask[SITES[1]]].double().numpy())
        rows.append((half, group, domain, codes[0], codes[1]))
    return rows, active


def fitted(a: np.ndarray, b: np.ndarray, entries: int, chosen: Any = None) -> np.ndarray:
    """Weights [A, B] of a ridge among `chosen` [B, entries], or else each target's most correlated sources."""
    a, b = a - a.mean(0), b - b.mean(0)
    covariance, cross = a.T @ a / len(a), a.T @ b / len(a)
    if chosen is None:
        chosen = (-np.square(cross) / covariance.diagonal().clip(1e-12)[:, None]).argsort(0)[:entries].T
    weights = np.zeros(cross.shape)
    for target, at in enumerate(chosen):
        gram = covariance[np.ix_(at, at)]
        loading = 1e-3 * max(gram.diagonal().mean(), 1e-12) * np.eye(len(at))
        weights[at, target] = np.linalg.solve(gram + loading, cross[at, target])
    return weights


def ties(a: np.ndarray, b: np.ndarray, entries: int) -> np.ndarray:
    """[B, entries]: the sources as `fit_map` chooses them, as latents that are idle in a domain have any."""
    moments = LatentMoments(torch.arange(a.shape[1]), torch.arange(b.shape[1]), a.shape[1], b.shape[1])
    moments.add(torch.from_numpy(a), torch.from_numpy(b))
    return fit_map(moments, entries).indices.numpy()


def test_what_maps_explain_in_each_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_ACTIVE", ACTIVE)
    entries = {site: saes()[site] for site in SITES}
    options = Options(parts=["links"], removed=0, batch_size=3, rule=RULE)
    (found,) = measure_reuse(tiny_lm.trained_model(), tokens(), entries, iter(texts()), options)["links"]
    rows, active = dense()
    _, layout = text()
    domains = range(len(layout.domains))
    take = [counts.sum(0) > 0 for counts in active]
    common = active[1][:, take[1]] >= ACTIVE
    assert (common[0] != common[1]).any()
    assert (common[0] & common[1]).any()
    assert found["latents"] == {"upstream": take[0].sum(), "downstream": take[1].sum()}
    assert found["in_both"] == (common[0] & common[1]).sum()

    def of(half: int, domain: Any, without: int = -1) -> list[np.ndarray]:
        """Both sites' codes [n, F] of these positions."""
        kept = [row for row in rows if row[0] == half and domain in (None, row[2]) and row[1] != without]
        return [np.concatenate([row[at] for row in kept])[:, take[at - 3]] for at in (3, 4)]

    centres = [[side.mean(0) for side in of(0, domain)] for domain in domains]
    mixed = links._moved(take[1].sum(), 0).numpy()
    assert (np.sort(mixed) == np.arange(len(mixed))).all()
    assert (mixed != np.arange(len(mixed))).all()
    for number, row in zip((1, 8), found["maps"], strict=True):
        own = [fitted(*of(0, domain), number) for domain in domains]
        permuted = [fitted(*of(0, domain), number, ties(*of(0, domain), number)[mixed]) for domain in domains]
        everything = fitted(*of(0, None), number)

        def explained(weights: np.ndarray, a: int, b: int, without: int) -> float:
            """Of domain b's second half, among what is active in it and in a."""
            source, target = (side - centre for side, centre in zip(of(1, b, without=without), centres[b], strict=True))
            kept = common[a] & common[b]
            left = np.square(target - source @ weights)[:, kept].sum()
            return float(1 - left / np.square(target)[:, kept].sum())

        pairs = [(0, 1), (1, 0)]
        many: dict[str, list[float]] = {name: [] for name in ("home", "away", "everything", "chance", "kept")}
        for without in range(-1, layout.groups):
            ways = {"home": [own[b] for _, b in pairs], "away": [own[a] for a, _ in pairs],
                    "everything": [everything] * 2, "chance": [permuted[a] for a, _ in pairs]}  # fmt: skip
            for name, weights in ways.items():
                many[name].append(float(np.mean([explained(w, a, b, without)
                                                 for w, (a, b) in zip(weights, pairs, strict=True)])))  # fmt: skip
            many["kept"].append(many["away"][-1] / many["home"][-1])
        for name, values in many.items():
            expected = estimate(values)
            assert row[name]["value"] == pytest.approx(expected.value, abs=2e-3), (number, name)
            assert row[name]["ci95"] == pytest.approx(expected.ci95, abs=2e-2), (number, name)
        for a in domains:
            for b in domains:
                value = explained(own[a], a, b, -1)
                assert row["matrix"][a][b]["value"] == pytest.approx(value, abs=2e-3)
