"""Losses of restricted dictionaries, of fitted directions and of removals, by plain hooks and full logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reuse_by_hooks import SIZES, measured, saes, spliced, text, used
from saekernels.eval.studies.reuse.lists import Run, lists, sampled
from saekernels.sae.activations import TopK
from saekernels.sae.edits import Edit, EditedSAE
from saekernels.sae.module import SAE
from saekernels.sae.probes import Moments, fit_probes
from tiny_lm import SITES


@torch.no_grad()
def deltas(entry: str, change: Any) -> np.ndarray:
    """[D]: ΔCE of the second half by domain."""
    windows, layout = text()
    sums, counts = np.zeros(len(layout.domains)), np.zeros(len(layout.domains))
    for window in windows:
        if layout.half[window.document] == 1:
            at = int(layout.domain[window.document])
            spoilt, clean = (spliced(window, entry, one)[0] for one in (change, lambda x: x))
            sums[at] += float((spoilt - clean).double().sum())
            counts[at] += len(clean)
    return sums / counts


def among(sae: SAE, latents: Tensor) -> Any:
    """The output where pre-activations of all other latents are left out, by dense products."""

    def change(x: Tensor) -> Tensor:
        scale: Any = 1.0
        shift: Any = 0.0
        given = x
        if sae.normalization is not None:
            given, scale, shift = sae.normalization.apply(x)
        norms = sae.decoder_norms() if sae.rescale_by_decoder_norm else torch.ones(64)
        pre = ((given - sae.b_dec) @ sae.W_enc.T + sae.b_enc) * norms
        allowed = torch.zeros(64, dtype=torch.bool)
        allowed[latents] = True
        pre = torch.where(allowed, pre, -torch.inf)
        if isinstance(sae.activation, TopK):
            best = pre.topk(min(sae.activation.k, len(latents)), dim=-1)
            values = best.values.relu() if sae.activation.relu else best.values
            z = torch.zeros_like(pre).scatter(-1, best.indices, values)
        else:
            assert sae.threshold is not None
            z = torch.where(pre > sae.threshold, pre.relu(), 0)
        return ((z / norms) @ sae.W_dec + sae.b_dec) * scale + shift

    return change


@pytest.mark.parametrize("entry", list(saes()))
def test_losses_of_restricted_dictionaries_by_hooks(entry: str) -> None:
    sae, use = saes()[entry], used(entry)
    row = next(row for row in measured()["sites"] if row["site"] == entry)["transfer"]
    held = lists(use, SIZES, 0)
    for size, found in zip(SIZES, row["curve"], strict=True):
        for number, domain in enumerate(use.layout.domains):
            own = held[Run("own", domain, size)]
            best = sorted(range(64), key=lambda i, n=number: -float(use.totals("effect")[0, n, i]))[:size]
            assert own.tolist() == best
            for kind, name in (("own", "matrix"), ("random", "random_matrix")):
                expected = deltas(entry, among(sae, held[Run(kind, domain, size)]))
                assert [cell["value"] for cell in found[name][number]] == pytest.approx(expected, abs=5e-4)
        union = held[Run("union", "", size)]
        assert set(union.tolist()) == {i for domain in use.layout.domains for i in
                                       held[Run("own", domain, size)].tolist()}  # fmt: skip
        assert found["union"]["value"] == pytest.approx(deltas(entry, among(sae, union)).mean(), abs=5e-4)
        assert found["union_held"] == len(union)
    for name, latents in (("whole", torch.arange(64)), ("none", torch.tensor([], dtype=torch.int64))):
        got = [cell["value"] for cell in row[name]["domains"]]
        assert got == pytest.approx(deltas(entry, among(sae, latents)), abs=5e-4)


def test_directions_are_fitted_in_the_first_half_of_one_domain() -> None:
    windows, layout = text()
    entry = SITES[0]
    found = next(row for row in measured()["sites"] if row["site"] == entry)["transfer"]["pca"]["matrix"]
    for number in range(2):
        moments = Moments(32)
        for window in windows:
            if layout.half[window.document] == 0 and layout.domain[window.document] == number:
                _, x, touched = spliced(window, entry, lambda x: x)
                moments.add(x[touched])
        probe = fit_probes(moments, [8])[8]
        assert [cell["value"] for cell in found[number]] == pytest.approx(deltas(entry, probe), abs=2e-3)


@pytest.mark.parametrize("entry", list(saes()))
def test_removals_by_hooks(entry: str) -> None:
    """The latents that are removed are spread over what is carried, and the errors are those of the table."""
    use = used(entry)
    found = next(row for row in measured()["sites"] if row["site"] == entry)["removal"]
    windows, layout = text()
    counts = np.zeros(2)
    for window in windows:
        if layout.half[window.document] == 1:
            counts[int(layout.domain[window.document])] += window.counted.sum()
    assert [one["latent"] for one in found["latents"]] == sampled(use, 4)
    whole = deltas(entry, saes()[entry])
    for one in found["latents"]:
        removed = deltas(entry, EditedSAE(saes()[entry], [Edit(one["latent"], "zero")]))
        expected = float(((removed - whole) * counts).sum() / counts.sum())
        assert one["removed"]["value"] == pytest.approx(expected, abs=2e-4)
        total = float(use.sums["effect"][1, :, :, one["latent"]].sum())
        assert one["effect"] == pytest.approx(total / counts.sum(), rel=1e-5)
    for way in ("effect", "first_order"):
        e, t = (np.array([float(take(one)) for one in found["latents"]]) for take in
                (lambda one, way=way: one[way], lambda one: one["removed"]["value"]))  # fmt: skip
        assert found[way]["error"]["value"] == pytest.approx(np.abs(e - t).sum() / np.abs(t).sum())
        assert found[way]["bias"]["value"] == pytest.approx(e.sum() / t.sum())
        assert found[way]["correlation"]["value"] == pytest.approx(np.corrcoef(e, t)[0, 1])
