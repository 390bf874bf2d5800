"""Crosscoders in one model against hooks and principal components that know nothing of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

import interrupted
import saekernels as sk
import tiny_lm
from crosscoder_by_hooks import FAST, LATENTS, SITES, ByHand, D, crosscoder, documents
from reports import Page
from saekernels.display.numbers import with_interval
from saekernels.errors import InputError
from saekernels.eval import replacement_schema
from saekernels.eval.report.replacement.page import replacement_page
from saekernels.eval.store.fingerprints import of_sae
from saekernels.eval.studies.crosslayer import fits
from saekernels.eval.studies.crosslayer.measure import evaluate_replacement


@pytest.fixture(scope="module")
def by_hand() -> ByHand:
    return ByHand(tiny_lm.model(num_hidden_layers=2), crosscoder(), documents())


@pytest.fixture(scope="module")
def found(by_hand: ByHand) -> dict[str, Any]:
    return evaluate_replacement(by_hand.model, replacement=by_hand.coder, documents=documents(), domain="a", **FAST)


def test_every_run_against_hooks(found: dict[str, Any], by_hand: ByHand) -> None:
    codes = [torch.cat([by_hand.codes(by_hand.clean(one))[i] for one in by_hand.fitted]) for i in range(2)]
    l0 = [float((one > 0).sum(1).double().mean()) for one in codes]
    means = [torch.cat([by_hand.clean(one)[i] for one in by_hand.fitted]).mean(0) for i in range(2)]
    order = torch.randperm(LATENTS, generator=torch.Generator().manual_seed(0))

    def forced(gave: list[Tensor]) -> list[Tensor]:
        return by_hand.rows(by_hand.codes(gave))

    def each(gave: list[Tensor], domain: str = "ab") -> list[Tensor]:
        return [by_hand.principal(round(l0[i]), False, domain)(gave)[i] for i in range(2)]

    runs = {row["run"]: row for row in found["runs"]}
    wanted = {
        "teacher_forced": by_hand.ce(forced),
        "only_0": by_hand.ce(forced, (0,)),
        "only_1": by_hand.ce(forced, (1,)),
        "error": found["clean_ce"],
        "zero": by_hand.ce(lambda gave: [torch.zeros_like(one) for one in gave]),
        "mean": by_hand.ce(lambda gave: [m.expand_as(one) for m, one in zip(means, gave, strict=True)]),
        "permuted": by_hand.ce(lambda gave: by_hand.rows(by_hand.codes(gave), order)),
        "affine": by_hand.ce(each),
        "affine_shared": by_hand.ce(by_hand.principal(round(sum(l0) / 2), True)),
        "affine@a": by_hand.ce(lambda gave: each(gave, "a")),
        "affine_shared@a": by_hand.ce(by_hand.principal(round(sum(l0) / 2), True, "a")),
    }
    assert found["clean_ce"] == pytest.approx(by_hand.ce(lambda gave: gave), abs=1e-5)
    assert list(runs) == list(wanted)
    for name, ce in wanted.items():
        assert runs[name]["ce"] == pytest.approx(ce, abs=2e-5), name
    assert runs["affine"]["ranks"] == [round(one) for one in l0]
    assert len({round(row["ce"], 4) for row in runs.values()}) == len(runs)
    over = runs["only_0"]["ce"] - runs["teacher_forced"]["ce"]
    assert runs["only_0"]["over_teacher_forced"]["value"] == pytest.approx(over, abs=1e-12)
    rows = {row["run"]: row for row in found["extrapolation"]["rows"]}
    outside = by_hand.ce(lambda gave: each(gave, "a"), domain="b") - by_hand.ce(lambda gave: gave, domain="b")
    assert rows["affine@a"]["outside"]["value"] == pytest.approx(outside, abs=4e-5)


def test_reconstruction_activity_and_what_it_is_called(found: dict[str, Any], by_hand: ByHand) -> None:
    gave = [by_hand.clean(one) for one in by_hand.measured]
    x = [torch.cat([one[i] for one in gave]) for i in range(2)]
    codes = by_hand.codes(x)
    for i, (row, out) in enumerate(zip(found["layers"], by_hand.rows(codes), strict=True)):
        spread = (x[i] - x[i].mean(0)).square().sum()
        assert row["fvu_teacher_forced"] == pytest.approx(float((x[i] - out).square().sum() / spread), rel=1e-4)
        assert row["l0_teacher_forced"] == pytest.approx(float((codes[i] > 0).sum(1).double().mean()))
        assert row["used_teacher_forced"] == int((codes[i] > 0).any(0).sum())
        assert "fvu_joint" not in row
    either = (codes[0] > 0) | (codes[1] > 0)
    assert found["used"] == int(either.any(0).sum())
    l0 = [row["l0_teacher_forced"] for row in found["layers"]]
    latents = float(either.sum(1).double().mean())
    assert found["l0"] == {"teacher_forced": pytest.approx({"latents": latents, "pairs": sum(l0)})}
    assert max(l0) < latents < sum(l0)
    assert (found["replacement"], found["causal"], found["compounding"]) == ("crosscoder", False, None)
    assert any("codes are those of a clean pass" in note for note in found["notes"])
    assert found["accounting"]["replacement"]["parameters"] == LATENTS * (4 * D + 1) + 2 * D
    assert "replaced" not in found["accounting"]  # a crosscoder reads and writes one place: nothing lies between


def test_its_record_is_what_the_schema_says_and_has_a_page(found: dict[str, Any]) -> None:
    found = json.loads(json.dumps(found))
    jsonschema.validate(found, replacement_schema())
    for change in ({"compounding": found["runs"][0]["delta_ce"]}, {"causal": True}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**found, **change}, replacement_schema())
    page = Page(replacement_page(found))

    def rows(section: str) -> dict[str, list[str]]:
        return {row[0].text: [cell.text for cell in row] for row in page.tables[section][1:]}

    forced, baselines = rows("teacher-forced-at-all-layers-and-at-each-alone"), rows("against-honest-baselines")
    assert list(forced) == ["teacher forced", "only 0", "only 1", "error"]
    assert set(baselines) == {"teacher forced", "affine", "affine shared", "permuted", "mean", "zero"}
    runs = {row["run"]: row for row in found["runs"]}
    for name, cells in (*forced.items(), *baselines.items()):
        delta = runs[name.replace(" ", "_")]["delta_ce"]
        assert with_interval(delta["value"], delta["ci95"]) in cells, name
    over = runs["only_1"]["over_teacher_forced"]
    assert forced["only 1"][-1] == with_interval(over["value"], over["ci95"])
    layers = rows("reconstruction-by-layer")
    assert f"{found['layers'][1]['used_teacher_forced']} of {LATENTS}" in layers["1"]
    assert f"Latents used at any layer: {found['used']}." in page.text
    assert list(rows("inside-one-domain-and-elsewhere")) == ["affine@a", "affine_shared@a"]
    assert "Replacing 2 layers by a crosscoder, with codes of clean passes, " in page.text
    assert "ompounding" not in page.text


def test_a_killed_run_goes_on_and_the_residual_stream_is_overwritten(
    by_hand: ByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted.in_small_chunks(50, monkeypatch.setattr)
    at = ["model.layers.0", "model.layers.1"]

    def run(folder: Path | None, coder: sk.Crosscoder = by_hand.coder, **changes: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"affine": False, "documents": documents()[:6], **FAST, **changes}
        return {**evaluate_replacement(by_hand.model, replacement=coder, checkpoint=folder, **options), "run": None}

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", sites=at, progress=interrupted.after(9, stop))
    resumed = run(tmp_path / "run", sites=at)
    assert resumed == run(None, sites=at)
    json.dumps(resumed, allow_nan=False)
    rows = {row["run"]: row["ce"] for row in resumed["runs"]}
    assert rows["teacher_forced"] == rows["only_1"] != rows["only_0"]
    assert any(note.endswith("teacher_forced is only_1.") for note in resumed["notes"])
    other = crosscoder()
    other.threshold.fill_(0.5)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="belongs to another evaluation"):
        run(tmp_path / "run", other, sites=at)


def test_on_every_domain_and_where_layers_are_wide(
    found: dict[str, Any], by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(**options: Any) -> dict[str, Any]:
        options = {"domain": "all", "replacement": by_hand.coder, "documents": documents(), **FAST, **options}
        made = evaluate_replacement(by_hand.model, **options)
        return {"notes": made["notes"], **{row["run"]: row for row in made["runs"]}}

    every = runs()
    ranks = every["affine"]["ranks"]
    each = [by_hand.principal(rank, False, "b") for rank in ranks]
    wanted = {
        "affine@a": next(row["ce"] for row in found["runs"] if row["run"] == "affine@a"),
        "affine@b": by_hand.ce(lambda gave: [each[i](gave)[i] for i in range(2)]),
        "affine_shared@b": by_hand.ce(by_hand.principal(every["affine_shared"]["ranks"][0], True, "b")),
    }
    for name, ce in wanted.items():
        assert every[name]["ce"] == pytest.approx(ce, abs=2e-5), name
    monkeypatch.setattr(fits, "MOST_WIDTH", 2 * D - 1)
    wide = runs()
    assert every.keys() - wide.keys() == {"affine_shared", "affine_shared@a", "affine_shared@b"}
    assert wide["affine@b"]["ce"] == pytest.approx(every["affine@b"]["ce"], abs=1e-5)
    assert any(note.endswith("affine_shared is left out.") for note in wide["notes"])


def test_errors_say_what_is_needed(by_hand: ByHand) -> None:
    def fails(message: str, **changes: Any) -> None:
        given = {"replacement": by_hand.coder, "documents": documents(), **FAST, **changes}
        with pytest.raises((InputError, TypeError), match=message):
            evaluate_replacement(by_hand.model, **given)

    both = crosscoder()
    both.sites = ("model.layers.0",) * 2
    fails("its 2 heads are at 'model.layers.0' of as many models, and one is evaluated here", replacement=both)
    both.sites = None
    fails("replacement: models: the crosscoder's files do not say where it reads", replacement=both)
    fails("need one for each of 2 heads", sites=SITES[:1])
    fails("sources: the codes of a crosscoder are of all layers at once", sources=True)
    fails("beside: got .*Crosscoder", beside=crosscoder())
    fails("no module 'nowhere'", sites=["nowhere", SITES[0]])
    narrow = sk.Crosscoder(D + 1, 4, 2, sk.ReLU())
    fails("33", replacement=narrow, sites=SITES)
    head = sk.head_sites(by_hand.coder, SITES)[0][SITES[0]]
    with pytest.raises(ValueError, match=r"give the whole crosscoder to saekernels\.evaluate_replacement"):
        of_sae(head)
