"""Simulated languages with a known answer: disjoint dictionaries read as heuristics, one common one as general."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import tracemalloc
from typing import Any

import pytest
import torch

import domains
import linked
from saekernels.eval.store import window_files
from saekernels.eval.studies.reuse.measure import measure_reuse
from saekernels.eval.studies.reuse.options import Options
from saekernels.eval.text import windows

# Lists of half of a set: those of like frequency can differ.
LIST = 6


@functools.cache
def measured(shared: int) -> dict[str, Any]:
    """The language with so many of four latents common, 16 documents a domain."""
    model = domains.language(shared)
    options = Options(latents=[LIST, 12])
    found = measure_reuse(model, domains.tokens(), {domains.SITE: domains.sae()}, model.documents(16, 60), options)
    assert found["documents"] == dict.fromkeys(("domain 0", "domain 1", "domain 2"), 16)
    (site,) = found["sites"]
    return site


def curve(shared: int, size: int = LIST) -> dict[str, Any]:
    return next(row for row in measured(shared)["transfer"]["curve"] if row["latents"] == size)


def test_disjoint_dictionaries_read_as_heuristics() -> None:
    site = measured(0)
    for kind in ("effect", "mass"):
        found = site[kind]
        assert found["general"]["value"] == 0
        assert found["chance"]["value"] > 0.05, "less than chance: nothing is shared at all"
        assert found["ceiling"]["ci95"][0] > 0.6, "the text is long enough to see sharing if there were any"
        assert found["distinct"]["value"] == pytest.approx(3)
        rising = [row["effective"]["value"] for row in found["rarefaction"]]
        assert rising == pytest.approx([rising[0], 2 * rising[0], 3 * rising[0]], rel=0.1)
    for size in (LIST, 12):
        row = curve(0, size)
        assert row["transfer"]["value"] == pytest.approx(0, abs=1e-6)
        assert row["away"]["value"] == pytest.approx(site["transfer"]["none"]["mean"]["value"])
        assert row["home"]["value"] == pytest.approx(row["union"]["value"], abs=0.01)
        assert row["gap"]["ci95"][0] > 0.5


def test_one_common_dictionary_reads_as_general() -> None:
    site = measured(4)
    for kind in ("effect", "mass"):
        found = site[kind]
        low, high = found["general"]["ci95"]
        assert high >= found["ceiling"]["ci95"][0], "no less than two halves of one domain share"
        assert found["general"]["value"] > 0.8
        assert low > found["chance"]["value"]
        assert found["distinct"]["value"] == pytest.approx(1, abs=0.05)
        rising = [row["effective"]["value"] for row in found["rarefaction"]]
        assert rising == pytest.approx([rising[0]] * 3, rel=0.05)
    row = curve(4)
    low, high = row["transfer"]["ci95"]
    assert low <= 1 <= high
    low, high = row["gap"]["ci95"]
    assert low <= 0 <= high
    assert row["random_share"]["ci95"][1] < row["transfer"]["ci95"][0], "it is not for their frequency"


def test_mixtures_are_in_order() -> None:
    """Of four latents 0, 1, ..., 4 are common: the share, the number of dictionaries and transfer tell them apart."""
    for kind in ("effect", "mass"):
        general = [measured(shared)[kind]["general"] for shared in range(5)]
        for one, other in itertools.pairwise(general):
            assert one["ci95"][1] < other["ci95"][0], "intervals lie apart, in order"
        distinct = [measured(shared)[kind]["distinct"]["value"] for shared in range(5)]
        assert distinct == sorted(distinct, reverse=True)
    transfer = [curve(shared)["transfer"]["value"] for shared in range(5)]
    assert transfer == sorted(transfer)
    assert transfer[1] < 0.25 < transfer[2] < 0.6 < transfer[3]


@pytest.mark.parametrize("shared", range(5))
def test_controls_come_out_as_they_must(shared: int) -> None:
    site, row = measured(shared), curve(shared)
    whole, none = (site["transfer"][name]["mean"]["value"] for name in ("whole", "none"))
    assert whole == pytest.approx(0, abs=1e-6), "the SAE is the model's own dictionary"
    assert none > 0.8
    assert row["held"] == dict.fromkeys(row["held"], LIST)
    assert row["union"]["value"] <= row["home"]["value"] + 0.03
    assert whole < row["home"]["value"] < none
    low, high = row["over_random"]["ci95"]
    assert low < row["random"]["value"] - row["home"]["value"] < high
    matrix = [[cell["value"] for cell in line] for line in row["matrix"]]
    assert row["home"]["value"] == pytest.approx(sum(matrix[i][i] for i in range(3)) / 3)
    away = [matrix[a][b] for a in range(3) for b in range(3) if a != b]
    assert row["away"]["value"] == pytest.approx(sum(away) / 6)
    assert row["gap"]["value"] == pytest.approx(row["away"]["value"] - row["home"]["value"])
    removal = site["removal"]
    assert removal["effect"]["error"]["value"] < 0.45
    assert removal["first_order"]["error"]["value"] > 0.8, "calibrated predictions have no slope"
    json.dumps(site, allow_nan=False)


def test_a_slice_is_as_narrow_as_its_domains_are_apart() -> None:
    """A domain of a common dictionary is like a random set of its size; of disjoint ones it shares nothing."""

    def slices(shared: int, kind: str) -> dict[str, dict[str, Any]]:
        return {row["level"]: row for row in measured(shared)["slices"][kind]}

    for kind in ("effect", "mass"):
        disjoint, common = slices(0, kind), slices(4, kind)
        assert list(disjoint) == ["token", "document", "domain", "everything"]
        assert disjoint["domain"]["general"]["value"] == 0
        assert disjoint["domain"]["effective_ratio"]["ci95"][1] < 0.5
        for name in ("effective_ratio", "general_ratio"):
            assert common["domain"][name]["value"] == pytest.approx(1, abs=0.05)
            low, high = common["document"][name]["ci95"]
            assert low < 1 < high
        for ratio in ("effective_ratio", "general_ratio"):
            ordered = [slices(shared, kind)["domain"][ratio]["value"] for shared in range(5)]
            assert ordered == sorted(ordered) or ratio == "effective_ratio"
            assert ordered[-1] == max(ordered)
        # A token has its own four latents in any language.
        for found in (disjoint, common):
            assert found["token"]["effective"]["value"] <= domains.ACTIVE
            assert found["token"]["effective_ratio"]["ci95"][1] < 0.6


@functools.cache
def linked_maps(common: int) -> list[dict[str, Any]]:
    model = linked.Linked(common).eval()
    options = Options(parts=["links"], removed=0)
    found = measure_reuse(model, domains.tokens(), linked.saes(), model.documents(8, 100), options)
    (pair,) = found["links"]
    assert (pair["upstream"], pair["downstream"]) == linked.SITES
    assert pair["in_both"] == linked.LATENTS
    maps: list[dict[str, Any]] = pair["maps"]
    return maps


def test_links_hold_elsewhere_as_far_as_they_are_common() -> None:
    """Of 24 links 0, 8, 16 and all are common: what maps keep in other domains is in order, intervals lie apart."""
    for number, entries in enumerate((1, 8)):
        found = [linked_maps(common)[number] for common in (0, 8, 16, linked.LATENTS)]
        assert [row["entries"] for row in found] == [entries] * 4
        for row in found:
            assert row["home"]["value"] == pytest.approx(1, abs=1e-3), "late latents are copies, in every domain"
        for one, other in itertools.pairwise(found):
            assert one["kept"]["ci95"][1] < other["kept"]["ci95"][0]
            assert one["everything"]["ci95"][1] < other["everything"]["ci95"][0]
        assert found[0]["away"]["value"] < found[0]["chance"]["value"], "a wrong link is worse than none"
        assert found[-1]["kept"]["value"] == pytest.approx(1, abs=1e-3)
        assert found[-1]["matrix"][0][2]["value"] == pytest.approx(1, abs=1e-3)
    assert all(abs(linked_maps(common)[0]["chance"]["value"]) < 0.06 for common in (0, 8, 16, linked.LATENTS))
    json.dumps(found, allow_nan=False)


def test_directions_are_at_home_where_they_were_fitted() -> None:
    """PCA of a domain of disjoint latents knows nothing of the others; of a common dictionary as much as at home."""
    disjoint, common = (measured(shared)["transfer"]["pca"] for shared in (0, 4))
    assert disjoint["gap"]["ci95"][0] > 1
    low, high = common["gap"]["ci95"]
    assert low <= 0 <= high


@pytest.mark.slow
@pytest.mark.parametrize("parts", [("sharing", "slices", "transfer"), ("links",)], ids="-".join)
def test_memory_does_not_grow_with_the_text(parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors alive at once, and what numpy and Python hold, for a text and for one four times as long."""
    # The text is taken in pieces of a fixed size, here smaller than either.
    monkeypatch.setattr(window_files, "CHUNK_POSITIONS", 640)
    monkeypatch.setattr(windows, "_GROUP_CHARACTERS", 640)
    model: Any = linked.Linked(12) if parts == ("links",) else domains.language(2)
    saes = linked.saes() if parts == ("links",) else {domains.SITE: domains.sae()}
    least = 2 * linked.LATENTS**2 * 4 if parts == ("links",) else 2 * 2 * 4 * 3 * domains.LATENTS * 8

    def peak(length: int) -> tuple[int, int]:
        most = python = 0

        def look(done: int, total: int) -> None:
            nonlocal most, python
            gc.collect()
            python = max(python, tracemalloc.get_traced_memory()[0])
            alive = {one.data_ptr(): one.nbytes for one in gc.get_objects() if type(one) is torch.Tensor}
            most = max(most, sum(alive.values()))

        documents = model.documents(8, length)
        # Batches of links are of one group of one domain: of one window, so that a short text fills them, too.
        options = Options(parts, latents=[LIST], removed=2, batch_size=1 if parts == ("links",) else 8)
        gc.collect()
        gc.freeze()  # so that only what comes from here on is looked at
        tracemalloc.start()
        try:
            measure_reuse(model, domains.tokens(), saes, documents, options, progress=look)
            return most, python
        finally:
            tracemalloc.stop()
            gc.unfreeze()

    short, long = (40, 160) if parts == ("links",) else (80, 640)
    peak(short)
    few, many = peak(short), peak(long)
    assert few[0] > least, "sums are among what is counted"
    assert many[0] <= 1.02 * few[0]
    assert many[1] <= 1.6 * few[1], "the windows alone would be twice as much, or 3 times"
