"""evaluate(leave_first=, leave_norm=): the same positions stay in every run, and no mean, limit or share knows them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_lm
from saekernels.eval import Document, InputError, evaluate
from saekernels.eval.store import window_files
from saekernels.eval.text.windows import Tokens
from saekernels.splice.context import splice
from saekernels.splice.leave import Norms

DOCUMENTS = [Document(tiny_lm.PARAGRAPH[i * 20 :], "prose") for i in range(4)] + [Document(tiny_lm.CODE, "code")]
SITE = tiny_lm.SITES[1]
RATIO = 1.1


def run(**options: Any) -> Any:
    saes = options.pop("saes", None) or {SITE: tiny_lm.sae(1)}
    return evaluate(tiny_lm.trained_model(), tiny_lm.tokenizer(), saes, DOCUMENTS, bootstrap=0, **options)


def windows() -> list[Any]:
    cutter = Tokens(tiny_lm.tokenizer(), 24)
    return [window for texts in cutter.cut([one.text for one in DOCUMENTS], 0) for window in texts]


@torch.no_grad()
def losses(first: int, ratio: float | None, replace: str = "sae") -> tuple[float, float, float]:
    """(clean CE, spliced CE, share of positions left for their norm), window by window, by torch alone."""
    model, sae = tiny_lm.trained_model(), tiny_lm.sae(1)
    seen: list[Tensor] = []
    handle = model.get_submodule(SITE).register_forward_hook(lambda *a: seen.append(out_of(a[2])[0]))
    cut = windows()
    for window in cut:
        model(torch.tensor(window.ids[None].astype("int64")))
    handle.remove()
    candidates = [~torch.from_numpy(w.special) & (torch.arange(len(w.ids)) >= first) for w in cut]
    norms = Norms()
    pairs = list(zip(seen, candidates, strict=True))
    for x, kept in pairs:
        norms.add(x, x, kept)
    far = [torch.zeros_like(k) if ratio is None else norms.outlying(x, x, ratio) for x, k in pairs]
    touched = [k & ~f for k, f in zip(candidates, far, strict=True)]
    mean = torch.cat([x[t] for x, t in zip(seen, touched, strict=True)]).double().mean(0).float()
    totals = torch.zeros(3, dtype=torch.float64)
    for window, mask in zip(cut, touched, strict=True):
        ids = torch.tensor(window.ids[None].astype("int64"))
        counted = torch.from_numpy(window.counted)
        with splice(model, {SITE: sae}, replace=replace, means={SITE: mean}, untouched=~mask[None]):
            spliced = model(ids).logits
        for place, logits in enumerate((model(ids).logits, spliced)):
            loss = torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:], reduction="none")
            totals[place] += loss[counted].sum()
        totals[2] += counted.sum()
    left = sum(int((k & f).sum()) for k, f in zip(candidates, far, strict=True)) / sum(int(k.sum()) for k in candidates)
    return float(totals[0] / totals[2]), float(totals[1] / totals[2]), left


def out_of(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize(("first", "ratio"), [(0, None), (4, None), (0, RATIO), (3, RATIO)])
def test_the_figures_are_those_of_a_splice_by_hand(first: int, ratio: float | None) -> None:
    report = run(leave_first=first, leave_norm=ratio)
    (row,) = report.sites
    clean, spliced, left = losses(first, ratio)
    assert row.ce.clean == pytest.approx(clean, abs=1e-5)
    assert row.ce.spliced == pytest.approx(spliced, abs=1e-5)
    assert row.ce.mean == pytest.approx(losses(first, ratio, "mean")[1], abs=1e-5)
    assert row.ce.zero == pytest.approx(losses(first, ratio, "zero")[1], abs=1e-5)
    if ratio is None:
        assert "left" not in report.run
    else:
        assert 0 < left < 0.5
        assert report.run["left"][SITE]["left"] / report.run["left"][SITE]["positions"] == pytest.approx(left, abs=1e-9)
        assert f"at most {left:.2%} of a site's positions (at {SITE})" in " ".join(report.notes)


def test_each_rule_changes_the_figures() -> None:
    spliced = [run(leave_first=first, leave_norm=ratio).sites[0].ce.spliced for first, ratio in RULES]
    assert len({round(one, 5) for one in spliced}) == len(RULES)


RULES = [(0, None), (4, None), (0, RATIO), (3, RATIO)]


def test_the_rule_stands_in_the_report() -> None:
    report = run(leave_first=2, leave_norm=5, baselines=())
    assert report.mask.endswith(
        " Left as they are, in every run: the first 2 of each window and those whose norm at a site exceeds 5 times "
        "the site's median in the clean run."
    )


def test_what_is_left_at_a_site_depends_on_no_other_site_and_no_batch() -> None:
    alone = run(leave_norm=RATIO)
    both = run(saes=tiny_lm.saes() | {SITE: tiny_lm.sae(1)}, leave_norm=RATIO, batch_size=2)
    assert both.run["left"][SITE] == alone.run["left"][SITE]
    same = next(row for row in both.sites if row.site == SITE)
    assert same.ce.spliced == pytest.approx(alone.sites[0].ce.spliced, abs=1e-5)
    assert same.baselines["pca"].ce == pytest.approx(alone.sites[0].baselines["pca"].ce, abs=1e-5)


def test_the_figures_have_the_same_bits_with_reused_layers() -> None:
    reused, computed = (
        run(saes=tiny_lm.saes(), leave_norm=RATIO, leave_first=1, reuse_layers=reuse).to_dict()
        for reuse in (True, False)
    )
    assert (reused.pop("run")["layer_reuse"], computed.pop("run")["layer_reuse"]) == ("on", "off: not asked for")
    assert reused == computed


@pytest.mark.parametrize(
    ("options", "message"),
    [({"leave_first": -2}, "leave_first: got -2, need at least 0"), ({"leave_norm": 0.5}, "leave_norm: got 0.5, need")],
)
def test_what_is_no_rule_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(**options)


def test_the_limits_are_those_of_the_first_text_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(leave_norm=RATIO, baselines=())
    for name in ("FIRST_POSITIONS", "CHUNK_POSITIONS"):
        monkeypatch.setattr(window_files, name, 60)
    monkeypatch.setattr(window_files, "_CONTEXTS", 0)
    few = run(leave_norm=RATIO, baselines=())
    monkeypatch.setattr(window_files, "CHUNK_POSITIONS", 10_000)
    assert run(leave_norm=RATIO, baselines=()).run["left"] == few.run["left"]
    assert few.run["left"][SITE]["read_above"] != whole.run["left"][SITE]["read_above"]


def test_a_run_folder_of_another_rule_is_refused(tmp_path: Any) -> None:
    run(leave_norm=RATIO, checkpoint=tmp_path)
    with pytest.raises(InputError, match="leave"):
        run(leave_norm=2 * RATIO, checkpoint=tmp_path)
