"""What a linear map predicts of an error whose linear part is known, and the whole study by hooks and full logits."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny_lm
from saekernels.eval import Document, InputError
from saekernels.eval.studies.controls.error import ErrorMap, ErrorScores, columns_of
from saekernels.eval.studies.controls.measure import measure_controls
from saekernels.eval.studies.controls.options import RUNS, Options
from saekernels.eval.studies.controls.text import halves
from saekernels.eval.text.windows import chosen
from saekernels.sae.activations import TopK
from saekernels.sae.module import SAE
from saekernels.sae.probes import Moments, fit_ridge
from saekernels.splice.leave import Leave
from saekernels.splice.norms import RunningMedian
from tiny_lm import SITES, texts, tokens

DRAWS = {"bootstrap": 50, "batch_size": 3}


def synthetic(n: int, seed: int, share: float) -> tuple[Tensor, Tensor]:
    """x [n, 12], and errors [n, 12] of which an affine map of x makes this share of the variance."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=generator)
    weights = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(5))).Q
    noise = torch.randn(n, 12, generator=generator)
    return x, share**0.5 * x @ weights + (1 - share) ** 0.5 * noise + 0.5


def fitted(share: float) -> ErrorMap:
    folds = [Moments(12, 14) for _ in range(2)]
    for seed, fold in enumerate(folds):
        x, error = synthetic(4000, seed, share)
        fold.add(x, columns_of(error))
    return ErrorMap(folds)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_the_share_that_was_put_in_is_found(share: float) -> None:
    found, scores = fitted(share), ErrorScores(20)
    x, error = synthetic(8000, 7, share)
    scores.add(found, x, error, torch.arange(8000) % 20)
    made = scores.figures(found, 200, 0)
    assert made["explained"] == pytest.approx(share, abs=0.02)
    low, high = made["explained_ci95"]
    assert low <= made["explained"] <= high
    assert high - low < 0.03
    # The mean of the error, 0.5 in 12 dimensions beside a variance of 1 in each, is predicted as well.
    assert made["power_explained"] == pytest.approx((share + 0.25) / 1.25, abs=0.02)
    assert made["norm_explained"] == pytest.approx(float(scored(found, x, error)), abs=1e-6)
    torch.testing.assert_close(columns_of(error)[:, -1], error.double().square().sum(1))
    json.dumps(made, allow_nan=False)


def scored(found: ErrorMap, x: Tensor, error: Tensor) -> Tensor:
    norms = error.double().norm(dim=1)
    left = (norms - found.norm(x).double()[:, 0]).square().sum()
    return 1 - left / (norms - found.norm.mean_out.double()).square().sum()


def test_a_norm_that_is_linear_in_x_is_predicted() -> None:
    """Errors of random directions whose length is an affine function of x: nothing of the vector, all of its norm."""
    folds, parts = [Moments(12, 14) for _ in range(2)], []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(4000, 12, generator=generator)
        length = 1 + x @ torch.linspace(0, 1, 12)
        unit = F.normalize(torch.randn(4000, 12, generator=generator), dim=1)
        parts.append((x, unit * length[:, None]))
    for fold, (x, error) in zip(folds, parts, strict=False):
        fold.add(x, columns_of(error))
    found, scores = ErrorMap(folds), ErrorScores(4)
    scores.add(found, *parts[2], torch.arange(4000) % 4)
    made = scores.figures(found, 0, 0)
    assert made["norm_explained"] == pytest.approx(1, abs=1e-4)
    assert made["squared_norm_explained"] > 0.98
    assert abs(made["explained"]) < 0.01
    assert made["explained_ci95"] is None


def test_halves_hold_every_domain_and_as_much() -> None:
    assert halves(["a", "b", "c", "d"]) == [True, False, True, False]
    assert halves(["a", "a", "a", "b", "a"]) == [True, False, True, False, False]
    assert halves(["a"]) == [True]


@functools.cache
def saes() -> dict[str, Any]:
    return {SITES[0]: tiny_lm.sae(0), f"{SITES[0]}#jump": tiny_lm.sae(2, jump=True), SITES[1]: tiny_lm.sae(1)}


@functools.cache
def measured(rule: Leave | None = None) -> dict[str, Any]:
    options = Options(rule=rule or Leave(), **DRAWS)
    return measure_controls(tiny_lm.trained_model(), tokens(), saes(), iter(texts()), options)


def hooked(window: Any, site: str, replace: Any = None) -> tuple[Tensor, Tensor]:
    """(logits, the site's output), the output changed by replace(output)."""
    seen: list[Tensor] = []

    def hook(module: Any, given: Any, out: Tensor) -> Tensor | None:
        seen.append(out)
        return None if replace is None else replace(out)

    handle = tiny_lm.trained_model().get_submodule(site).register_forward_hook(hook)
    with torch.inference_mode():
        logits = tiny_lm.trained_model()(torch.from_numpy(window.ids).long()[None]).logits
    handle.remove()
    return logits[0].double(), seen[0][0]


@torch.no_grad()
def by_hooks(entry: str, rule: Leave) -> dict[str, Any]:
    """ΔCE of each run, the shares that are predicted and FVU, from plain hooks, dense rows and full logits."""
    site, sae = entry.partition("#")[0], saes()[entry]
    many = list(chosen(iter(texts()), tokens(), None, 0))
    first = halves([document.domain for document, _ in many])
    folds = halves([document.domain for (document, _), own in zip(many, first, strict=True) if own])
    norms = RunningMedian()
    for window in (w for _, ws in many for w in ws):
        own = ~window.special & (np.arange(len(window.ids)) >= rule.first)
        norms.add(hooked(window, site)[1][own].norm(dim=1))
    median = norms.value

    def touched(window: Any, x: Tensor) -> Tensor:
        at = torch.from_numpy(~window.special & (np.arange(len(window.ids)) >= rule.first))
        return at if rule.norm is None else at & (x.norm(dim=1) <= rule.norm * median)

    pairs: list[list[tuple[Tensor, Tensor]]] = [[], []]
    order = iter(folds)
    for (_, windows), own in zip(many, first, strict=True):
        if own:
            part = pairs[0 if next(order) else 1]
            for window in windows:
                x = hooked(window, site)[1]
                part.append((x[touched(window, x)], (x - sae(x))[touched(window, x)]))
    moments = [Moments(32, 32) for _ in pairs]
    for one, part in zip(moments, pairs, strict=True):
        one.add(*(torch.cat(column) for column in zip(*part, strict=True)))
    ((probe, _),) = fit_ridge(moments, [slice(0, 32)])
    centre = torch.cat([error for part in pairs for _, error in part]).mean(0)
    sums: dict[str, float] = dict.fromkeys(RUNS["error"], 0.0)
    left = about = count = 0.0
    for window in (w for (_, ws), own in zip(many, first, strict=True) if not own for w in ws):
        clean, x = hooked(window, site)
        at = touched(window, x)
        error = x - sae(x)
        left += float((error - probe(x))[at].double().square().sum())
        about += float((error - centre)[at].double().square().sum())
        parts = {"sae": sae(x), "linear": sae(x) + probe(x), "remainder": x - probe(x), "whole": x}
        ids, keep = torch.from_numpy(window.ids).long(), torch.from_numpy(window.counted)
        count += float(keep.sum())
        for run, value in parts.items():
            put = torch.where(at[:, None], value, x)
            logits = hooked(window, site, lambda out, put=put: put[None])[0]
            ce = [F.cross_entropy(one[:-1], ids[1:], reduction="none")[keep].sum() for one in (clean, logits)]
            sums[run] += float(ce[1] - ce[0])
    return {"delta": {run: total / count for run, total in sums.items()}, "explained": 1 - left / about}


@pytest.mark.parametrize("rule", [Leave(), Leave(first=3), Leave(2, 1.2)])
@pytest.mark.parametrize("entry", [SITES[0], f"{SITES[0]}#jump", SITES[1]])
def test_parts_of_the_error_by_hooks_and_full_logits(entry: str, rule: Leave) -> None:
    row = next(row for row in measured(rule)["sites"] if row["site"] == entry)
    expected = by_hooks(entry, rule)
    for run, delta in expected["delta"].items():
        assert row["runs"][run]["delta_ce"] == pytest.approx(delta, abs=2e-4), run
    assert row["error"]["explained"] == pytest.approx(expected["explained"], abs=1e-3)


def test_the_whole_error_gives_the_clean_model() -> None:
    found = measured()
    for row in found["sites"]:
        whole = row["runs"]["whole"]
        assert whole["delta_ce"] == pytest.approx(0, abs=1e-6)
        assert whole["ce"] == pytest.approx(found["clean_ce"], abs=1e-6)
        assert row["runs"]["sae"]["delta_ce"] > 0.3
        for run in ("linear", "remainder"):
            saved = row["runs"][run]["saved"]
            assert saved == pytest.approx(row["runs"]["sae"]["delta_ce"] - row["runs"][run]["delta_ce"])
            low, high = row["runs"][run]["saved_ci95"]
            assert low < saved < high
    assert found["documents"] == {"fitted": 5, "measured": 5}
    json.dumps(found, allow_nan=False)


def test_masks_leave_positions_out_of_everything() -> None:
    everything, less, few = (measured(rule) for rule in (Leave(), Leave(first=3), Leave(2, 1.2)))
    sizes = [sum(found["positions"].values()) for found in (everything, less, few)]
    windows = [w for _, ws in chosen(iter(texts()), tokens(), None, 0) for w in ws]
    assert sizes[0] == sum(int((~w.special).sum()) for w in windows)
    assert sizes[1] == sum(int((~w.special[3:]).sum()) for w in windows)
    assert 0 < sizes[2] < sum(int((~w.special[2:]).sum()) for w in windows)
    assert few["mask"] == {"leave_first": 2, "leave_norm": 1.2}


def test_the_same_twice_and_with_batches_of_another_size() -> None:
    """Rounding alone differs between batch sizes."""
    again = measure_controls(tiny_lm.trained_model(), tokens(), saes(), iter(texts()), Options(**DRAWS))
    assert again == measured()
    other = measure_controls(
        tiny_lm.trained_model(), tokens(), saes(), iter(texts()), Options(bootstrap=50, batch_size=1)
    )
    for row, first in zip(other["sites"], again["sites"], strict=True):
        for run, one in row["runs"].items():
            assert one["delta_ce"] == pytest.approx(first["runs"][run]["delta_ce"], abs=1e-3), run


def test_transcoders_and_parts_alone() -> None:
    """A transcoder's error is that of what it replaces; there is no Gaussian bound without the variances of x alone."""
    torch.manual_seed(0)
    sae = SAE(32, 64, TopK(8), pre_bias="none")
    site = f"{SITES[0]}.mlp@module"
    found = measure_controls(tiny_lm.trained_model(), tokens(), {site: sae}, iter(texts()), Options(**DRAWS))
    row = found["sites"][0]
    assert row["runs"]["whole"]["delta_ce"] == pytest.approx(0, abs=1e-6)
    assert row["bits"]["pca"]["gaussian_bits"] is None
    assert 0 < row["bits"]["pca"]["fvu"] < 1
    alone = measure_controls(
        tiny_lm.trained_model(), tokens(), {site: sae}, iter(texts()), Options(parts=("error",), **DRAWS)
    )["sites"][0]
    assert set(alone["runs"]) == set(RUNS["error"])
    assert "bits" not in alone
    assert alone["error"] == row["error"]


def test_reconstructions_are_those_of_the_evaluator() -> None:
    """FVU and L0 by hand on the measured half, and ΔCE of the quantised codes near that of the codes."""
    found = measured()
    many = list(chosen(iter(texts()), tokens(), None, 0))
    first = halves([document.domain for document, _ in many])
    for row in found["sites"]:
        sae, site = saes()[row["site"]], row["site"].partition("#")[0]
        windows = [w for (_, ws), own in zip(many, first, strict=True) if not own for w in ws]
        x = torch.cat([hooked(w, site)[1][torch.from_numpy(~w.special)] for w in windows])
        with torch.no_grad():
            error, l0 = x - sae(x), sae.encode(x).l0().double().mean()
        assert row["fvu"] == pytest.approx(float(error.square().sum() / (x - x.mean(0)).square().sum()), rel=1e-4)
        assert row["l0"] == pytest.approx(float(l0))
        assert row["bits"]["sae"]["fvu"] == pytest.approx(1.01 * row["fvu"], rel=0.01)
        assert row["runs"]["quantised"]["delta_ce"] == pytest.approx(row["runs"]["sae"]["delta_ce"], abs=0.05)
        assert row["bits"]["sae"]["bits"]["total"] > row["bits"]["sae"]["gaussian_bits"]


@pytest.mark.parametrize(
    ("options", "text", "message"),
    [
        ({"parts": ("luck",)}, None, r"^parts: got luck, need some of error, seeds, bits$"),
        ({"parts": ()}, None, r"^parts: got none, need some of error, seeds, bits$"),
        ({"rise": 0.0}, None, r"^rise: need a positive number, got 0.0$"),
        ({"rule": Leave(24)}, None, r"^controls: no position of the half that is fitted on is touched; leave fewer al"),
        ({}, [Document(tiny_lm.CODE, "code", "1")],
         r"^data: one half of the documents is fitted on and the other measured, but there is only one$"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(options: dict[str, Any], text: list[Document] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_controls(tiny_lm.trained_model(), tokens(), saes(), text or texts(), Options(**options))


def test_seeds_need_several_saes_of_a_site() -> None:
    with pytest.raises(InputError, match=r"^parts: seeds is for several SAEs of one site \(SITE#LABEL\), and every"):
        measure_controls(
            tiny_lm.trained_model(), tokens(), {SITES[0]: tiny_lm.sae(0)}, texts(), Options(parts=("seeds",))
        )
