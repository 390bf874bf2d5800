"""The report: JSON by its schema, the table and its sentence."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import tiny_lm
from reports import report, site
from saekernels.display.tables import text_table
from saekernels.eval import Report, evaluate, schema
from saekernels.eval.report.page import page
from saekernels.eval.report.reading import ABBREVIATIONS, reading, rows_of
from saekernels.eval.report.terminal import as_text


def tables(text: str) -> dict[str, dict[str, str]]:
    """Cells of all tables by row and heading; a table that goes on under the same rows is one with the first.

    A heading's column ends where the heading does, and the next one's begins behind the gap.
    """
    found: dict[str, dict[str, str]] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not line or set(line) != {"─"}:
            continue
        headings = re.split(r"\s{2,}", lines[number - 1])
        below = lines[number + 1 :]
        for row in below[: below.index("")]:
            cells = re.split(r"\s{2,}", row)
            assert len(cells) == len(headings), row
            found.setdefault(f"{headings[0]}/{cells[0]}", {}).update(zip(headings[1:], cells[1:], strict=True))
    return found


def figures(cell: str) -> list[float]:
    """ "+0.500 [+0.200, +0.300]" as three numbers; percents as shares."""
    scale = 0.01 if "%" in cell else 1.0
    return [scale * float(one) for one in re.findall(r"[-+]?\d+(?:\.\d+)?", cell)]


@functools.cache
def measured() -> Report:
    """A real report with everything a table can hold."""
    model, tokenizer, saes = tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes()
    return evaluate(model, tokenizer, saes, tiny_lm.documents(), bootstrap=50)


def test_json_validates_and_keeps_the_issue_fields(tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    path = tmp_path / "report.json"
    report().write_json(path)
    data = json.loads(path.read_text())
    jsonschema.validate(data, schema())
    assert data == report().to_dict()
    assert data["schema"] == 1
    assert data["sites"][0]["delta_ce"] == {
        "nats": 0.05,
        "ci95": [0.2, 0.3],
        "bits_per_byte": 0.1,
        "bits_per_byte_ci95": [0.08, 0.12],
    }
    assert set(data["sites"][0]) == set(data["all_sites"])
    assert data["all_sites"]["domains"]["code"]["tokens"] == 500


def test_the_schema_refuses_what_is_wrong() -> None:
    good = report().to_dict()
    for path, value in ((("schema",), 2), (("sites",), []), (("sites", 0, "ce", "clean"), "3"), (("extra",), 1)):
        bad: Any = json.loads(json.dumps(good))
        inner = bad
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema())


def test_a_number_that_is_not_finite_never_reaches_the_file(tmp_path: Path) -> None:
    broken = report(all_sites=dataclasses.replace(site("all"), kl=float("nan")))
    with pytest.raises(ValueError, match="JSON"):
        broken.write_json(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_the_table_shows_the_loss_first_and_every_row() -> None:
    text = as_text(report())
    sentence, facts, table = text.split("\n\n")[:3]
    assert " ".join(sentence.split()) == reading(report())
    assert " ".join(facts.split()) == (
        "a <b> model: 1,000 tokens of 8 documents, clean CE 3.000 nats per token; layers.0 stands for model.layers.0"
    )
    header = table.splitlines()[0]
    assert header.split()[0] == "site"
    assert header.index("ΔCE") < header.index("KL") < header.index("FVU")
    assert tables(text)["site/together"]["ΔCE nats [95 %]"] == "+0.500 [+0.200, +0.300]"
    assert text.count("model.layers.") == 1, "the full prefix once"
    assert sum(line.startswith("<law> & [red]") for line in text.splitlines()) == 1
    assert "a note with [brackets]" in text


@pytest.mark.parametrize("width", [60, 80, 99])
def test_every_figure_and_interval_of_the_report_is_shown(width: int) -> None:
    value = measured()
    data, shown = value.to_dict(), tables(as_text(value, width))
    for row in (*data["sites"], data["all_sites"]):
        name = "together" if row["site"] == "all" else row["site"].removeprefix("model.")
        cells = shown[f"site/{name}"]
        change, recovered = row["delta_ce"], row["loss_recovered"]
        wanted = {
            "ΔCE nats [95 %]": [change["nats"], *change["ci95"]],
            "bits/byte [95 %]": [change["bits_per_byte"], *change["bits_per_byte_ci95"]],
            "KL [95 %]": [row["kl"], *row["kl_ci95"]],
            "top-1 [95 %]": [row["top1_agreement"], *row["top1_agreement_ci95"]],
            "FVU": [row["fvu"]],
            "dead": [row["dead_fraction"]],
            "CE": [row["ce"]["spliced"]],
            "CE mean": [row["ce"]["mean"]],
            "CE zero": [row["ce"]["zero"]],
            "rec. mean [95 %]": [recovered["mean"], *recovered["mean_ci95"]],
            "rec. zero [95 %]": [recovered["zero"], *recovered["zero_ci95"]],
        }
        for heading, numbers in wanted.items():
            assert figures(cells[heading]) == pytest.approx(numbers, abs=5.1e-4), (name, heading)
        assert figures(cells["L0"]) == pytest.approx([row["l0"]], abs=0.051)
        assert set(cells) == {*wanted, "L0"}
        against = shown[f"ΔCE with/{name}"]
        names = {"zero": "zeros", "mean": "mean", "random": "random error", "pca": "PCA probe"}
        for kind, one in row["baselines"].items():
            numbers = [one["delta_ce"], *one["delta_ce_ci95"]]
            assert figures(against[f"{names[kind]} [95 %]"]) == pytest.approx(numbers, abs=5.1e-4)
    for one in data["cumulative"]:
        cell = shown[f"ΔCE with/{one['site'].removeprefix('model.')}"]["up to here [95 %]"]
        assert figures(cell) == pytest.approx([one["delta_ce"]["nats"], *one["delta_ce"]["ci95"]], abs=5.1e-4)


def test_strata_are_shown_and_the_worst_of_each_axis_is_marked() -> None:
    value = measured()
    data, text = value.to_dict(), as_text(value)
    shown, least = tables(text), 0.01 * data["tokens"]
    axes = {"domain": data["all_sites"]["domains"], **data["all_sites"]["strata"]}
    assert len(axes) > 2
    for axis, parts in axes.items():
        rows = {key.split("/", 1)[1]: cells for key, cells in shown.items() if key.startswith(f"ΔCE by {axis}/")}
        if len(parts) < 2:
            assert rows == {}
            continue
        assert [name.removesuffix(" ◀") for name in rows] == list(parts)
        known = {name: part["delta_ce"]["nats"] for name, part in parts.items() if part["tokens"] >= least}
        assert [name for name in rows if name.endswith("◀")] == [max(known, key=known.__getitem__) + " ◀"]
        for name, cells in rows.items():
            part = parts[name.removesuffix(" ◀")]
            together = next(cell for heading, cell in cells.items() if heading.startswith("together"))
            assert figures(together)[0] == pytest.approx(part["delta_ce"]["nats"], abs=5.1e-4)
            assert int(cells["tokens"].replace(",", "")) == part["tokens"]
    worst = data["all_sites"]["worst"]
    assert f"of all, {worst['axis']} {worst['stratum']} with {worst['delta_ce']:+.3f}." in " ".join(text.split())


def test_one_is_not_many() -> None:
    one = report(tokens=1, documents=1)
    assert "a <b> model: 1 token of 1 document, clean" in as_text(one)
    assert "1 token of 1 document, windows" in page(one)


@pytest.mark.parametrize("width", [40, 60, 80, 99])
def test_no_line_is_padded_or_too_wide(width: int) -> None:
    for value in (report(), measured()):
        for line in as_text(value, width).splitlines():
            assert line == line.rstrip()
            assert len(line) <= width, line
            assert "…" not in line


def test_a_narrow_terminal_loses_columns_not_names() -> None:
    assert tables(as_text(report(), 50)) == tables(as_text(report(), 99))
    assert tables(as_text(report()))["site/layers.1"]["ΔCE nats [95 %]"] == "+0.250 [+0.200, +0.300]"


def test_every_abbreviation_that_occurs_is_explained_and_no_other() -> None:
    text = as_text(measured())
    assert all(f"\n{name}: {meaning.split()[0]}" in text for name, meaning in ABBREVIATIONS.items())
    bare = as_text(report(bootstrap=0, sites=[site("model.layers.0")], all_sites=site("model.layers.0")))
    assert "\nPCA: " not in bare
    assert "\nKL: " in bare


@pytest.mark.parametrize(
    ("sites", "shown"),
    [
        (["model.layers.3"], ["layers.3"]),
        (["model.layers.0", "model.layers.1#edited"], ["layers.0", "layers.1#edited"]),
        (["model.layers.3.mlp@module", "model.layers.4.mlp@module"], ["layers.3.mlp@module", "layers.4.mlp@module"]),
        (["model.layers.3", "model.layers.3.self_attn@input"], ["layers.3", "layers.3.self_attn@input"]),
        (["blocks.3.hook_resid_post", "blocks.4.hook_mlp_out"], ["blocks.3.hook_resid_post", "blocks.4.hook_mlp_out"]),
        (["encoder.layers.3", "decoder.layers.3"], ["encoder.layers.3", "decoder.layers.3"]),
        (["transformer.h.11@input", "lm_head@input"], ["transformer.h.11@input", "lm_head@input"]),
    ],
)
def test_sites_are_short_and_stay_apart(sites: list[str], shown: list[str]) -> None:
    joint = site("all", 0.5, "joint") if len(sites) > 1 else site(sites[0])
    value = report(sites=[site(name) for name in sites], all_sites=joint)
    names = [key.removeprefix("site/") for key in tables(as_text(value)) if key.startswith("site/")]
    assert names == [*shown, *(["together"] if len(sites) > 1 else [])]


def test_a_report_shows_itself_in_a_shell_and_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    value = report()
    assert str(value) == as_text(value, 99, styled=False)
    assert "\x1b" not in str(value)
    assert repr(value) == "<Report of 'a <b> model': 1,000 tokens, ΔCE +0.500 [+0.200, +0.300] nats per token>"
    html = value._repr_html_()
    assert html.count("<tr") == 1 + len(rows_of(value))
    assert "+0.500" in html
    assert not re.search(r"<(html|style|script|body|b)\b", html)
    odd = report(sites=[site("<b>&")], all_sites=site("<b>&"))._repr_html_()
    assert "&lt;b&gt;&amp;" in odd
    assert "<b>" not in odd


def test_a_terminal_sees_bold_headings_of_the_same_text() -> None:
    plain, styled = as_text(report(), 99, styled=False), as_text(report(), 99, styled=True)
    assert re.sub(r"\x1b\[\d+m", "", styled) == plain
    assert styled.startswith("\x1b[1mSplicing all 2 SAEs")


def test_a_name_moves_no_cursor_and_wide_characters_are_aligned() -> None:
    text = text_table(["name", "n"], [["\x1b[31mred\n", "1"], ["日本", "22"], ["e\u0301", "3"]])
    assert text.splitlines()[2:] == ["?[31mred?   1", "日本       22", "e\u0301           3"]


def test_a_long_name_is_folded_and_not_cut() -> None:
    name = "x" * 70
    lines = text_table(["name", "a", "b"], [[name, "1", "2" * 30]], width=60).splitlines()
    assert max(map(len, lines)) <= 60
    first = lines[2 : lines.index("")]
    assert "".join(line.split()[0] for line in first) == name


def test_the_sentence_says_what_it_costs() -> None:
    assert reading(report()) == (
        "Splicing all 2 SAEs together raises the loss from 3.000 to 3.500 nats per token (+0.500 [+0.200, +0.300]; "
        "+0.100 bits per byte); mean ablation gives 7.000; alone, a site costs +0.050 (layers.0) to +0.250 "
        "(layers.1); the worst domain is <law> & [red] with +0.400."
    )
    lower = site("model.layers.0", -0.05)
    assert "Splicing model.layers.0 lowers the loss" in reading(report(sites=[lower], all_sites=lower))
    assert "not finite" in reading(report(all_sites=site("all", None, "joint")))
