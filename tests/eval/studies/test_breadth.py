"""Slices of a text, and what probes and SAEs cost inside and outside of them: against plain hooks and full logits."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny_lm
from cli import arguments, fails
from saekernels.cli import main
from saekernels.eval import InputError
from saekernels.eval.report.breadth_page import breadth_page
from saekernels.eval.report.breadth_text import gap_sentence, print_breadth
from saekernels.eval.studies.breadth import Breadth, measure_breadth
from saekernels.eval.text.slice_choice import choose_slices
from saekernels.eval.text.slice_counts import Minimum
from saekernels.eval.text.slices import LEVELS, Slices, alternate, levels_of
from saekernels.eval.text.windows import chosen
from tiny_lm import SITES, counted, sample, slices, texts, tokens


@functools.cache
def measured(ranks: tuple[int, ...] = (1, 8), bootstrap: int = 50, where: Slices | None = None) -> Breadth:
    return measure_breadth(
        tiny_lm.trained_model(), tokens(), SITES[1], tiny_lm.sae(1), iter(texts()), where or slices(),
        ranks=ranks, bootstrap=bootstrap, batch_size=3,
    )  # fmt: skip


def hooked(ids: Tensor, replace: Any = None) -> tuple[Tensor, Tensor]:
    """(logits, the site's output), the output changed by replace(output)."""
    seen: list[Tensor] = []

    def hook(module: Any, given: Any, out: Tensor) -> Tensor | None:
        seen.append(out)
        return None if replace is None else replace(out)

    handle = tiny_lm.trained_model().get_submodule(SITES[1]).register_forward_hook(hook)
    with torch.inference_mode():
        logits = tiny_lm.trained_model()(ids).logits
    handle.remove()
    return logits[0].double(), seen[0][0].double()


def halves(where: Slices) -> tuple[list[Any], list[Any]]:
    cut, parts = tokens(), ([], [])
    many = list(chosen(iter(texts()), cut, None, 0))
    half = alternate([document.domain for document, _ in many])
    for number, (document, windows) in enumerate(many):
        for window, level in zip(windows, levels_of(document, windows, where, cut), strict=True):
            parts[0 if half[number] else 1].append((document.domain, window, level))
    return parts


def principal(rows: Sequence[Tensor], rank: int) -> Any:
    x = torch.cat(list(rows))
    mean = x.mean(0)
    _, sizes, basis = torch.linalg.svd(x - mean, full_matrices=False)
    basis = basis[sizes > 1e-5 * sizes[0]][:rank]
    return lambda out: ((out.double() - mean) @ basis.T @ basis + mean).float()


def expected(
    rank: int | None, fitted: Any, spliced: Any, measured_on: Any, where: Slices | None = None
) -> float | None:
    """ΔCE by full logits: probe of `rank` (None: the SAE) fitted where fitted(domain, level), and so on."""
    fit, test = halves(where or slices())
    rows = [hooked(torch.from_numpy(w.ids).long()[None])[1][torch.from_numpy(fitted(d, lv) & ~w.special)]
            for d, w, lv in fit]  # fmt: skip
    replace = tiny_lm.sae(1) if rank is None else principal(rows, rank)
    total = count = 0.0
    for domain, window, level in test:
        ids = torch.from_numpy(window.ids).long()[None]
        at = torch.from_numpy(spliced(domain, level) & ~window.special)

        def change(out: Tensor, at: Tensor = at) -> Tensor:
            return torch.where(at[None, :, None], replace(out), out)

        with torch.inference_mode():
            clean, other = hooked(ids)[0], hooked(ids, change)[0]
        keep = torch.from_numpy(window.counted & measured_on(domain, level)[:-1] & at.numpy()[:-1])
        ce = [F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")[keep].sum() for logits in (clean, other)]
        total, count = total + float(ce[1] - ce[0]), count + float(keep.sum())
    return total / count if count else None


def inside(number: int) -> Any:
    return lambda domain, level: level <= number


def outside(number: int) -> Any:
    return lambda domain, level: level > number


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("method", ["rank 1", "rank 8", "sae"])
def test_the_levels_by_hooks_and_full_logits(number: int, method: str) -> None:
    rank = int(method[5:]) if method != "sae" else None
    found = measured().figures
    sides = {"inside": inside, "outside": outside} if number < 3 else {"inside": inside}
    for side, make in sides.items():
        want = expected(rank, inside(number), make(number), make(number))
        assert want is not None
        assert found[LEVELS[number], method, side]["delta_ce"] == pytest.approx(want, abs=2e-4)
    assert ("everything", method, "outside") not in found


def test_ranks_differ_on_the_narrowest_slice_with_the_counts_that_were_chosen() -> None:
    ranks = (1, 4, 7, 8)
    where, notes = choose_slices(sample(texts()), tokens(), Minimum(8))
    assert (where.levels, notes) == (LEVELS, [])
    row = measured(ranks, 50, where).to_dict(where.names(tiny_lm.tokenizer()))["levels"][0]
    fitted, inside, outside, owners = counted(sample(texts()), where)
    assert (fitted, inside, outside, owners) == (12, 11, 489, 2)
    assert (row["fitted_on"], row["measured_on"], row["measured_documents"]) == (fitted, inside, owners)
    costs = [row["methods"][f"rank {rank}"] for rank in ranks]
    assert {cost["inside"]["tokens"] for cost in costs} == {inside}
    assert {cost["outside"]["tokens"] for cost in costs} == {outside}
    for side in ("inside", "outside"):
        deltas = sorted(cost[side]["delta_ce"] for cost in costs)
        assert min(b - a for a, b in itertools.pairwise(deltas)) > 1e-3


def test_a_token_anywhere_and_one_in_a_domain_by_hooks() -> None:
    token = slices().token
    for where in (Slices(token, None, None), Slices(token, None, "code")):
        found = measured((1, 8), 0, where)
        assert found.slices.levels == where.levels
        for level in where.levels[:-1]:
            number = LEVELS.index(level)
            for side, make in {"inside": inside, "outside": outside}.items():
                want = expected(8, inside(number), make(number), make(number), where)
                assert found.figures[level, "rank 8", side]["delta_ce"] == pytest.approx(want, abs=2e-4)


@pytest.mark.parametrize("source", ["code", "prose", "everything"])
@pytest.mark.parametrize("target", ["code", "prose"])
def test_the_transfer_matrix_by_hooks(source: str, target: str) -> None:
    def of(name: str) -> Any:
        return lambda domain, level: np.full(len(level), name in ("everything", domain))

    want = expected(8, of(source), of("everything"), of(target))
    result = measured().to_dict(slices().names(tiny_lm.tokenizer()))["transfer"]
    row, column = result["fitted_on"].index(source), result["measured_on"].index(target)
    assert result["delta_ce"][row][column] == pytest.approx(want, abs=2e-4)
    assert result["sae"][column] == pytest.approx(expected(None, of("x"), of("everything"), of(target)), abs=2e-4)


def test_the_dictionary_has_gaps_counts_and_the_same_numbers() -> None:
    data = measured().to_dict(slices().names(tiny_lm.tokenizer()))
    json.dumps(data, allow_nan=False)
    assert [level["level"] for level in data["levels"]] == list(LEVELS)
    fitted = [level["fitted_on"] for level in data["levels"]]
    assert fitted == sorted(fitted)
    assert fitted[0] > 0
    for level in data["levels"][:3]:
        for one in level["methods"].values():
            assert one["extrapolation_gap"] == one["outside"]["delta_ce"] - one["inside"]["delta_ce"]
            assert one["inside"]["tokens"] > 0
    assert data["levels"][3]["methods"]["sae"]["outside"] is None
    narrow = data["levels"][0]["methods"]["rank 8"]
    sentence = gap_sentence({**data, "model": "m", "notes": ["Widened."]})
    assert f"{narrow['extrapolation_gap']:+.3f}" in sentence
    count, measured_on = counted(sample(texts()), slices())[:2]
    assert f"fitted on {count} positions and measured on {measured_on} predictions. Widened." in sentence
    assert f"{count} / {measured_on}" in print_breadth(data)
    assert f"{count} / {measured_on}" in breadth_page({**data, "model": "m"})
    of_before = [{k: v for k, v in one.items() if not k.startswith("measured_")} for one in data["levels"]]
    assert print_breadth({**data, "levels": of_before}) == print_breadth(data)


def test_ranks_above_the_width_are_the_identity_on_everything() -> None:
    found = measured((99,), 0)
    assert found.ranks == [tiny_lm.WIDTH]
    figure = found.figures["everything", f"rank {tiny_lm.WIDTH}", "inside"]
    assert abs(figure["delta_ce"]) < 1e-3
    assert figure["ci95"] is None


def test_a_slice_without_positions_is_refused() -> None:
    nowhere = Slices(slices().token, "while .*", "no such domain")
    with pytest.raises(InputError, match="slice 'token' has no position in the half that probes are fitted on"):
        measure_breadth(
            tiny_lm.trained_model(), tokens(), SITES[1], tiny_lm.sae(1), iter(texts()), nowhere, ranks=[1]
        )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": d.text, "domain": d.domain}) + "\n" for d in texts()))
    return path


def test_breadth_from_the_command_line(
    files: dict[str, Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["breadth", *arguments(files, data=[data], bootstrap=["20"])[1:]]
    out, page = tmp_path / "b.json", tmp_path / "b.html"
    argv = [*base, "--ranks", "1", "4", "--domain", "code", "--template", "while .*", "--site", SITES[0]]
    assert main([*argv, "--json", str(out), "--html", str(page)]) == 0
    told = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["site"] == SITES[0]
    assert result["ranks"] == [1, 4]
    assert gap_sentence(result).split(",")[0] in told.replace("\n", " ")
    assert page.read_text().count("<svg") == 1
    assert "From domain to domain" in page.read_text()
    for extra, message in (
        (["--site", "model.layers.9"], "--site: no SAE was given for 'model.layers.9'"),
        (["--ranks", "0"], "--ranks: need at least 1"),
        (["--domain", "law"], "--domain: 'law' has 0 documents here"),
        (["--html", str(tmp_path / "no" / "b.html")], "no does not exist"),
    ):
        assert message in fails(capsys, [*base, *extra])


def test_breadth_within_a_report(
    files: dict[str, Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, page = tmp_path / "r.json", tmp_path / "r.html"
    argv = arguments(files, data=[data], json=[out], html=[page], bootstrap=["10"])
    assert main([*argv, "--breadth", SITES[1]]) == 0
    told = capsys.readouterr().out
    found = json.loads(out.read_text())["extras"]["breadth"]
    assert found["site"] == SITES[1]
    assert "extrapolation gap" in told
    assert "ΔCE against breadth" in page.read_text()
    assert "--breadth: no SAE was given for 'x'" in fails(capsys, [*argv, "--breadth", "x"])


def test_a_part_that_fails_does_not_cost_the_report(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, out = tmp_path / "one.txt", tmp_path / "r.json"
    text.write_text(tiny_lm.PARAGRAPH)
    assert main([*arguments(files, data=[text], json=[out], bootstrap=["0"]), "--breadth"]) == 2
    told = capsys.readouterr()
    assert "every domain has one document here" in told.err
    assert "the report is without that part" in told.err
    notes = json.loads(out.read_text())["notes"]
    assert any(note.startswith("Left out: domain: every domain") for note in notes)


def test_both_spellings_of_a_transcoders_site() -> None:
    path = f"{SITES[0]}.mlp"
    found = [
        measure_breadth(
            tiny_lm.trained_model(), tokens(), site, tiny_lm.sae(0), iter(texts()), slices(), ranks=(4,), bootstrap=0
        ).figures
        for site in (f"{path}@module", f"{path}@input -> {path}")
    ]
    assert found[0] == found[1]
