"""The curve and the matrices of restricted dictionaries by loops over random losses; what a removal takes away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saekernels.eval.studies.reuse.alone import _without
from saekernels.eval.studies.reuse.lists import NONE, WHOLE, Run
from saekernels.eval.studies.reuse.text import Layout
from saekernels.eval.studies.reuse.transfer import Losses, transfer_figures
from saekernels.eval.sums.jackknife import estimate
from saekernels.sae.activations import TopK
from saekernels.sae.module import SAE

SIZES = [2, 5]


def test_the_figures_of_random_losses_by_loops() -> None:
    layout = Layout(["x"] * 8 + ["y"] * 7 + ["z"] * 9)
    names, groups = layout.domains, layout.groups
    runs = [WHOLE, NONE, *(Run("pca", name) for name in names)]
    held = {}
    for size in SIZES:
        for number, name in enumerate(names):
            held[Run("own", name, size)] = torch.arange(size - (number == 1))
            held[Run("random", name, size)] = torch.arange(size)
        held[Run("union", "", size)] = torch.arange(size + 2)
    losses = Losses(layout, [*runs, *held])
    rng = np.random.default_rng(4)
    counts, clean = rng.integers(5, 50, (groups, 3)), rng.gamma(2, 10, (groups, 3))
    # No latents cost most, so that a list gains over them.
    sums = clean + counts * rng.uniform(0.2, 1, (len(losses.places), groups, 3))
    sums[losses.places[NONE]] += 2 * counts
    losses.counts, losses.clean, losses.sums = (torch.from_numpy(one).double() for one in (counts, clean, sums))

    def by_loops(without: int) -> Any:
        there = [group for group in range(groups) if group != without]

        def delta(run: Run, domain: int) -> float:
            raised = sum(sums[losses.places[run], group, domain] - clean[group, domain] for group in there)
            return float(raised / sum(counts[group, domain] for group in there))

        def matrix(kind: str, size: int = 0) -> list[list[float]]:
            return [[delta(Run(kind, name, size), b) for b in range(3)] for name in names]

        def ends(table: list[list[float]]) -> tuple[float, float]:
            away = [table[a][b] for a in range(3) for b in range(3) if a != b]
            return sum(table[a][a] for a in range(3)) / 3, sum(away) / 6

        none = sum(delta(NONE, b) for b in range(3)) / 3
        home, away = ends(matrix("pca"))
        found: dict[str, Any] = {
            "whole": {"domains": [delta(WHOLE, b) for b in range(3)]},
            "none": {"mean": none, "domains": [delta(NONE, b) for b in range(3)]},
            "pca": {"home": home, "away": away, "gap": away - home, "matrix": matrix("pca")},
            "curve": [],
        }
        for size in SIZES:
            (home, away), (lucky, _) = (ends(matrix(kind, size)) for kind in ("own", "random"))
            found["curve"].append({
                "home": home, "away": away, "gap": away - home, "transfer": (none - away) / (none - home),
                "random": lucky, "over_random": lucky - home, "random_share": (none - lucky) / (none - home),
                "union": sum(delta(Run("union", "", size), b) for b in range(3)) / 3,
                "matrix": matrix("own", size), "random_matrix": matrix("random", size),
            })  # fmt: skip
        return found

    def compare(got: Any, many: list[Any], at: str) -> None:
        if isinstance(many[0], dict):
            for key in many[0]:
                compare(got[key], [one[key] for one in many], f"{at}.{key}")
        elif isinstance(many[0], list):
            for number in range(len(many[0])):
                compare(got[number], [one[number] for one in many], f"{at}.{number}")
        else:
            expected = estimate(many)
            assert got["value"] == pytest.approx(expected.value), at
            assert got["ci95"] == pytest.approx(expected.ci95), at

    found = transfer_figures(losses, SIZES, held)
    compare(found, [by_loops(without) for without in range(-1, groups)], "")
    assert [row["latents"] for row in found["curve"]] == SIZES
    assert [list(row["held"].values()) for row in found["curve"]] == [[2, 1, 2], [5, 4, 5]]
    assert [row["union_held"] for row in found["curve"]] == [4, 7]
    # A list that is no better than none has nothing to transfer.
    losses.sums[losses.places[NONE]] = losses.clean
    assert [row["transfer"]["value"] for row in transfer_figures(losses, SIZES, held)["curve"]] == [None, None]


@torch.no_grad()
def test_what_is_left_without_a_latent_keeps_the_skip_connection() -> None:
    torch.manual_seed(0)
    sae = SAE(8, 12, TopK(3), pre_bias="none", skip=True)
    sae.W_skip.copy_(torch.randn(8, 8))
    sae.b_dec.copy_(torch.randn(8))
    x = torch.randn(20, 8)
    x_hat, codes = sae.forward_with_codes(x)
    dense = codes.to_dense()
    skipped = x_hat - dense @ sae.W_dec - sae.b_dec
    assert float(skipped.abs().mean()) > 0.5
    gone = int(codes.indices[0, 0])
    dense[:, gone] = 0
    torch.testing.assert_close(_without(sae, Run("removed", "", gone), x_hat, codes),
                               dense @ sae.W_dec + sae.b_dec + skipped)  # fmt: skip
    torch.testing.assert_close(_without(sae, NONE, x_hat, codes), sae.b_dec + skipped)
    idle = next(latent for latent in range(12) if not (codes.indices == latent).any() or not dense[:, latent].any())
    assert (_without(sae, Run("removed", "", idle), x_hat, codes) is x_hat) == (idle != gone)
