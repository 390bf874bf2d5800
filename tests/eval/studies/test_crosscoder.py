"""Crosscoders in one model against hooks and principal components that know nothing of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import interrupted
import saekernels as sk
import tiny_lm
from layouts import gemma_scope, made
from reports import Page
from saekernels.display.numbers import with_interval
from saekernels.errors import InputError
from saekernels.eval import replacement_schema
from saekernels.eval.report.replacement.page import replacement_page
from saekernels.eval.store.fingerprints import of_sae
from saekernels.eval.studies.crosslayer.measure import evaluate_replacement
from saekernels.eval.text.slices import alternate

LATENTS, LENGTH, D = 48, 22, tiny_lm.WIDTH
SITES = [f"model.layers.{layer}.mlp" for layer in range(2)]
FAST: dict[str, Any] = {"context": 24, "bootstrap": 20, "tokenizer": None}


def crosscoder() -> sk.Crosscoder:
    """Heads select for themselves, so that what is active differs between them; a row of each head is 0."""
    torch.manual_seed(1)
    found = sk.Crosscoder(D, LATENTS, 2, sk.BatchTopK(), norms="per_head", input_scale=[3.0, 2.0])
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=0.2)
        found.W_dec.view(LATENTS, 2, D)[0, 0] = found.W_dec.view(LATENTS, 2, D)[1, 1] = 0
        found.threshold.copy_(torch.tensor([0.6, 0.4]))  # type: ignore[union-attr]
    found.sites = tuple(SITES)
    return found.eval()


def documents() -> list[sk.Document]:
    ids = torch.randint(3, 320, (12, LENGTH), generator=torch.Generator().manual_seed(3)).tolist()
    return [sk.Document(str(i), "aab"[i % 3], ids=tuple(row)) for i, row in enumerate(ids)]


class ByHand:
    """The tiny model, with what its MLPs give exchanged by hooks, one document after another."""

    def __init__(self, model: Any, coder: sk.Crosscoder, given: list[sk.Document]) -> None:
        self.model, self.coder = model, coder
        read = [given[i] for i in np.random.default_rng(0).permutation(len(given))]
        half = alternate([one.domain for one in read])
        self.fitted = [one for one, own in zip(read, half, strict=True) if own]
        self.measured = [one for one, own in zip(read, half, strict=True) if not own]

    @torch.no_grad()
    def logits(self, document: sk.Document, written: dict[int, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits [S - 1, V], and what both MLPs gave [S, d]."""
        gave: list[Tensor] = []

        def hook(layer: int) -> Any:
            def put(module: nn.Module, args: Any, out: Tensor) -> Tensor:
                gave.append(out[0])
                return written[layer][None].to(out) if layer in written else out

            return put

        handles = [block.mlp.register_forward_hook(hook(i)) for i, block in enumerate(self.model.model.layers)]
        logits = self.model(torch.tensor([document.ids])).logits[0, :-1].double()
        for handle in handles:
            handle.remove()
        return logits, gave

    def clean(self, document: sk.Document) -> list[Tensor]:
        return self.logits(document, {})[1]

    def codes(self, gave: list[Tensor]) -> list[Tensor]:
        """[S, F] of each head."""
        W_enc, W_dec = self.coder.W_enc.view(LATENTS, 2, D), self.coder.W_dec.view(LATENTS, 2, D)
        scaled = [gave[0] * 3, gave[1] * 2]
        h = (sum(x @ W_enc[:, i].T for i, x in enumerate(scaled)) + self.coder.b_enc).relu()
        return [(h * (h * W_dec[:, i].norm(dim=1) > (0.6, 0.4)[i])).detach() for i in range(2)]

    def rows(self, codes: list[Tensor], order: Tensor | None = None) -> list[Tensor]:
        """What they write; order: in the directions of other latents, with the norms of their own."""
        made = []
        for i, own in enumerate(codes):
            W = self.coder.W_dec.view(LATENTS, 2, D)[:, i].detach()
            if order is not None:
                W = nn.functional.normalize(W[order], dim=1) * W.norm(dim=1, keepdim=True)
            made.append((own @ W + self.coder.b_dec[i].detach()) / (3, 2)[i])
        return made

    def ce(self, write: Any, layers: tuple[int, ...] = (0, 1), domain: str = "ab") -> float:
        losses = []
        for one in self.measured:
            if one.domain in domain:
                written = write(self.clean(one))
                logits, _ = self.logits(one, {layer: written[layer] for layer in layers})
                losses.append(nn.functional.cross_entropy(logits, torch.tensor(one.ids)[1:], reduction="none"))
        return float(torch.cat(losses).mean())

    def principal(self, rank: int, shared: bool, domain: str = "ab") -> Any:
        """Each head's own first principal components, or those of both side by side, of equal spread."""
        own = [self.clean(one) for one in self.fitted if one.domain in domain]
        x = [torch.cat([gave[i] for gave in own]).double() for i in range(2)]
        scales = [1 / one.var(0, correction=0).sum().sqrt() for one in x]
        sides = [torch.cat([a * s for a, s in zip(x, scales, strict=True)], 1)] if shared else x
        means = [one.mean(0) for one in sides]
        found = [torch.linalg.svd(one - m)[2][:rank] for one, m in zip(sides, means, strict=True)]

        def write(gave: list[Tensor]) -> list[Tensor]:
            wide = [one.double() for one in gave]
            if not shared:
                return [(one - m) @ v.T @ v + m for one, m, v in zip(wide, means, found, strict=True)]
            joined = torch.cat([a * s for a, s in zip(wide, scales, strict=True)], 1)
            out = (joined - means[0]) @ found[0].T @ found[0] + means[0]
            return [out[:, i * D : (i + 1) * D] / scales[i] for i in range(2)]

        return write


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


def test_a_weakly_causal_one_runs_jointly(by_hand: ByHand, tmp_path: Path) -> None:
    gemma_scope(made(D, 8, 2), tmp_path)
    clt = sk.load_cross_layer(tmp_path)
    sites = ["model.layers.0", "model.layers.1"]
    options = {**FAST, "bootstrap": 0}
    found = evaluate_replacement(by_hand.model, replacement=clt, documents=documents(), sites=sites, **options)
    assert (found["replacement"], found["causal"]) == ("weakly causal crosscoder", True)
    names = [row["run"] for row in found["runs"]]
    assert names[:2] == ["joint", "teacher_forced"]
    assert not {"affine_full", "affine_across", "affine_shared"} & set(names)
    jsonschema.validate(json.loads(json.dumps(found)), replacement_schema())
    text = Page(replacement_page(found)).text
    assert "Replacing 2 layers by a weakly causal crosscoder " in text
    assert "joint" in text
    assert "is compounding" in text


def test_topk_over_all_layers_is_teacher_forced(by_hand: ByHand) -> None:
    """With a k that drops nothing it is what a ReLU makes, in the run that both have."""
    sites = [f"{site}@module" for site in SITES]
    relu, across = (
        sk.CrossLayerTranscoder(D, 8, 2, one, across_layers=one != sk.ReLU()) for one in (sk.ReLU(), sk.TopK(16))
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for mine, other in zip(relu.parameters(), across.parameters(), strict=True):
            other.copy_(mine.normal_(std=0.3))
    options = {**FAST, "documents": documents()[:6], "sites": sites, "affine": False, "bootstrap": 0}
    plain, found = (evaluate_replacement(by_hand.model, replacement=one, **options) for one in (relu, across))
    assert (found["replacement"], found["causal"]) == ("cross-layer transcoder with TopK over all layers", False)
    jsonschema.validate(json.loads(json.dumps(found)), replacement_schema())
    runs = {row["run"]: row["ce"] for row in found["runs"]}
    assert list(runs) == ["teacher_forced", "only_0", "only_1", "error", "zero", "mean", "permuted"]
    for row in plain["runs"]:
        if row["run"] in ("teacher_forced", "zero", "mean"):
            assert runs[row["run"]] == pytest.approx(row["ce"], abs=1e-6)
    assert found["l0"]["teacher_forced"] == pytest.approx(plain["l0"]["teacher_forced"])
    with pytest.raises(InputError, match="beside: a cross-layer transcoder with TopK over all layers cannot run"):
        evaluate_replacement(by_hand.model, replacement=relu, beside=across_at(across, sites), **options)


def across_at(clt: sk.CrossLayerTranscoder, sites: list[str]) -> sk.CrossLayerTranscoder:
    clt.sites = tuple(sites)
    return clt


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
