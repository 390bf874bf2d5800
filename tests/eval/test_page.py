"""The HTML page: its figures are the report's, its charts and tables agree, and no name gets out of its place."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pages import Attributes, Page
from reports import report, site
from saekernels.display.charts import BLUE, ORANGE
from saekernels.eval import Report
from saekernels.eval.report.abbreviations import ABBREVIATIONS
from saekernels.eval.report.data import BaselineFigures, CumulativeFigures, SiteFigures, Worst
from saekernels.eval.report.page import page, tiles
from saekernels.eval.report.sections import random_ratio
from saekernels.eval.sums.accumulate import KL_BINS

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=y>\"'&\u2028"
SHARES = {"layers.0": (0.9, [0.8, 1.0]), "layers.1": (0.5, None), "all": (0.25, [0.2, 0.35])}


def baseline(delta: float | None) -> BaselineFigures:
    return BaselineFigures(4.0, delta, None, None, None)


def measured(row: SiteFigures, random: float) -> SiteFigures:
    """With baselines, strata and a histogram of KL: 30 tokens in bin 20 (under 0.1 nat), 10 in bin 27 (0.3 to 0.6)."""
    counts = [0] * KL_BINS
    counts[20], counts[27] = 30, 10
    baselines = {"random": baseline(random), "zero": baseline(10.0)}
    early, late = row.domains["code"], dataclasses.replace(row.domains["code"], tokens=0)
    strata = {"position": {"1-3": early, "4-15": row.domains["<law> & [red]"], "none": late}}
    return dataclasses.replace(row, baselines=baselines, strata=strata, kl_histogram=counts)


def full(**changes: Any) -> Report:
    """Two sites and all parts; ΔCE 0.05, 0.25 and 0.5."""
    rows = [measured(site("layers.0", 0.05), 0.1), measured(site("layers.1"), 0.1)]
    joint = dataclasses.replace(measured(site("all", 0.5, "joint"), 0.25), worst=Worst("position", "4-15", 0.4))
    targets = {
        name: {"outside": "", "parameters": 2e6 * share, "parameters_ci95": None, "share": share, "share_ci95": ends}
        for name, (share, ends) in SHARES.items()
    }
    task = {"name": "ioi", "prompts": 4, "clean": 2.0, "spliced": 1.0, "clean_accuracy": 1.0, "spliced_accuracy": 0.5}
    extras = {
        "effective_compute": {"targets": targets, "members": [{}, {}]},
        "tasks": {"reading": "Of 1 task.", "tasks": [{**task, "recovered": 0.5, "recovered_ci95": [0.4, 0.7]}]},
    }
    steps = [CumulativeFigures(row.site, n, 3.0, row.delta_ce, 0.1) for n, row in enumerate(rows, 1)]
    return report(**{"sites": rows, "all_sites": joint, "extras": extras, "cumulative": steps, **changes})


def percent_of(value: str | None) -> float:
    assert value is not None
    assert value.endswith("%")
    return float(value[:-1])


def test_the_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report().write_html(path)
    text = path.read_text()
    assert text.count("<svg") == text.count("</svg>") > 4
    assert not re.search(r"<(link|img|iframe|object|form)\b|@import|url\(", text)
    addresses = set(re.findall(r"https?://[^\"'\s<>]+", text))
    assert all(a.startswith(("http://www.w3.org/", "https://www.w3.org/")) for a in addresses), addresses
    assert "a &lt;b&gt; model" in text
    assert "<b>" not in text
    assert "&lt;law&gt; &amp; [red]" in text
    assert "currentColor" in text
    assert "#010203" not in text
    assert '>+0.500 <span class="ci">[+0.200, +0.300]<' in text
    assert page(report()) == text, "the same report gives the same page"


def test_the_page_survives_missing_figures() -> None:
    text = page(report(sites=[site("model.layers.0", None)], all_sites=site("all", None, "joint")))
    assert "not finite" in text
    assert "<svg" in text


def test_only_the_script_of_the_page_may_run() -> None:
    made = Page(page(full()))
    assert [a for tag, a in made.elements if tag == "script"] == [{"type": "application/json", "id": "report"}, {}]
    (policy,) = [a["content"] or "" for tag, a in made.elements if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(made.scripts[1].encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert not any(name.startswith("on") for _, attributes in made.elements for name in attributes)


@pytest.mark.parametrize("place", ["site", "domain", "model", "note", "task", "outside"])
def test_no_name_gets_out_of_its_place(place: str) -> None:
    given = full()
    row, extras = given.sites[0], json.loads(json.dumps(given.extras))
    changes: dict[str, Any] = {}
    if place == "site":
        changes["sites"] = [dataclasses.replace(row, site=HOSTILE), given.sites[1]]
    elif place == "domain":
        joint = given.all_sites
        changes["all_sites"] = dataclasses.replace(joint, domains={HOSTILE: row.domains["code"], **joint.domains})
    elif place == "task":
        extras["tasks"]["tasks"][0]["name"] = HOSTILE
    elif place == "outside":
        extras["effective_compute"]["targets"]["all"]["outside"] = HOSTILE
    else:
        changes |= {"model": HOSTILE} if place == "model" else {"notes": [HOSTILE]}
    hostile = full(**{"extras": extras, **changes})
    text = page(hostile)
    made, usual = Page(text), Page(page(given))
    assert "alert(1)" in text
    assert len(made.scripts) == 2
    assert made.scripts[1] == usual.scripts[1]
    assert {tag for tag, _ in made.elements} == {tag for tag, _ in usual.elements}
    assert not any(name.startswith("on") for _, attributes in made.elements for name in attributes)
    assert json.loads(made.scripts[0]) == hostile.to_dict()


def test_the_json_in_the_page_is_the_report() -> None:
    text = Page(page(full())).scripts[0]
    assert json.loads(text) == full().to_dict()
    assert not set("<>&") & set(text)


def test_without_its_script_the_page_says_all_the_same() -> None:
    text = page(full())
    bare = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert Page(bare).tables == Page(text).tables
    (link,) = [a for _, a in Page(bare).elements if a.get("id") == "download"]
    assert "hidden" in link
    assert "href" not in link


def test_the_tiles_are_the_figures_of_all_sites() -> None:
    assert [(tile.figure, tile.below) for tile in tiles(full())] == [
        ("+0.500", "[+0.200, +0.300]"),
        ("-", "of mean ablation's loss"),
        ("0.200", "[0.100, 0.300]"),
        ("25%", "[20, 35]"),
        ("+0.400", "position 4-15"),
    ]
    recovered = dataclasses.replace(full().all_sites.loss_recovered, mean=0.875, mean_ci95=(0.85, 0.9))
    known = full(all_sites=dataclasses.replace(full().all_sites, loss_recovered=recovered))
    assert (tiles(known)[1].figure, tiles(known)[1].below) == ("87.5%", "[85.0%, 90.0%]")
    unknown = tiles(report(all_sites=site("all", None, "joint")))
    assert [tile.figure for tile in unknown] == [
        "-",
        "-",
        "0.200",
        "-",
        "-",
    ]
    made = Page(page(full()))
    assert sum(a.get("class") == "tile" for _, a in made.elements) == 5


def test_every_section_has_a_link() -> None:
    made = Page(page(full()))
    sections = [a["id"] for tag, a in made.elements if tag == "section"]
    links = [a["href"] for tag, a in made.elements if tag == "a" and "href" in a]
    assert links == [f"#{name}" for name in sections]
    assert len(set(sections)) == len(sections) == 10


def test_bars_and_numbers_of_a_row_are_the_same_figure() -> None:
    made = Page(page(full()))
    values = made.column("cost-of-each-splice", "ΔCE nats")
    bars = [chart.marks("rect")[0] for chart in made.charts("cost-of-each-splice")]
    assert [value.text.split()[0] for value in values] == ["+0.050", "+0.250", "+0.500"]
    widths = [percent_of(bar["width"]) for bar in bars]
    # The axis goes from 0 to 0.6.
    assert widths == pytest.approx([100 * value / 0.6 for value in (0.05, 0.25, 0.5)], abs=0.01)
    told = [chart.attributes["title"] for chart in made.charts("cost-of-each-splice")]
    assert told[2] == "ΔCE +0.500 [+0.200, +0.300] nats per token"


def test_domains_go_from_the_worst_down_in_chart_and_table() -> None:
    made = Page(page(full()))
    section = "by-domain-all-sites-spliced"
    assert [cell.text for cell in made.column(section, "domain")] == ["<law> & [red]", "code"]
    assert [cell.text.split()[0] for cell in made.column(section, "ΔCE nats")] == ["+0.400", "+0.100"]
    assert [percent_of(c.marks("rect")[0]["width"]) for c in made.charts(section)] == pytest.approx([100, 25], abs=0.01)


def colours(marks: list[Attributes]) -> set[str | None]:
    return {mark.get("fill") for mark in marks} & {BLUE, ORANGE}


def test_all_sites_together_are_orange_in_every_chart_and_a_site_alone_blue() -> None:
    made = Page(page(full()))
    names = ["cost-of-each-splice", "effective-compute", "against-honest-baselines", "where-the-divergence-is"]
    for name in [*names, "between-the-clean-model-and-ablation"]:
        *alone, joint = made.charts(name)
        assert colours(joint.marks("rect") + joint.marks("path")) == {ORANGE}, name
        for chart in alone:
            assert colours(chart.marks("rect") + chart.marks("path")) == {BLUE}, name
    single = site("layers.1")
    lone = Page(page(report(sites=[single], all_sites=single)))
    assert colours(lone.charts("cost-of-each-splice")[0].marks("rect")) == {BLUE}
    assert ORANGE not in json.dumps(lone.tables, default=vars)


def test_the_strip_of_effective_compute_has_every_site() -> None:
    made = Page(page(full()))
    assert [cell.text for cell in made.column("effective-compute", "site")] == ["layers.0", "layers.1", "all together"]
    for chart, (share, ends) in zip(made.charts("effective-compute"), SHARES.values(), strict=True):
        points = [percent_of(mark["x"]) for mark in chart.marks("svg") if "x" in mark]
        assert points == pytest.approx([100 * share], abs=0.01)
        spans = [(percent_of(line["x1"]), percent_of(line["x2"])) for line in chart.marks("line")]
        assert spans == ([pytest.approx((100 * ends[0], 100 * ends[1]), abs=0.01)] if ends else [])
    shown = [cell.text for cell in made.column("effective-compute", "share")]
    assert shown == ["90.0% [80.0%, 100.0%]", "50.0%", "25.0% [20.0%, 35.0%]"]


def test_what_is_outside_of_the_family_is_said_in_words() -> None:
    extras = full().extras
    extras["effective_compute"]["targets"]["all"]["outside"] = "worse than the smallest member"
    made = Page(page(full(extras=extras)))
    assert made.column("effective-compute", "share")[2].text == "worse than the smallest member"
    assert made.charts("effective-compute")[2].marks("svg") == [{"aria-hidden": "true"}]


def test_baselines_lie_on_a_logarithmic_scale_beside_their_numbers() -> None:
    made = Page(page(full()))
    section = "against-honest-baselines"
    # From 0.01 to 10: three decades.
    wanted = [[0.1, 10.0, 0.05], [0.1, 10.0, 0.25], [0.25, 10.0, 0.5]]
    for chart, values in zip(made.charts(section), wanted, strict=True):
        points = [percent_of(mark["x"]) for mark in chart.marks("svg") if "x" in mark]
        assert points == pytest.approx([100 * (math.log10(value) + 2) / 3 for value in values], abs=0.01)
    assert [cell.text for cell in made.column(section, "random")] == ["+0.100", "+0.100", "+0.250"]
    assert [cell.text for cell in made.column(section, "SAE ÷ random error")] == ["0.50", "2.50", "2.00"]


@pytest.mark.parametrize(("delta", "random"), [(-0.1, 0.2), (0.1, -0.2), (0.1, 0.0), (None, 0.2), (0.1, None)])
def test_a_ratio_of_what_is_not_positive_is_a_dash(delta: float | None, random: float | None) -> None:
    row = dataclasses.replace(site("layers.1", delta), baselines={"random": baseline(random)})
    assert random_ratio(row) is None
    made = Page(page(report(sites=[row], all_sites=row)))
    assert [cell.text for cell in made.column("against-honest-baselines", "SAE ÷")] == ["-"]
    known = [value for value in (random, delta) if value is not None and value > 0]
    chart = made.charts("against-honest-baselines")[0]
    assert len([mark for mark in chart.marks("svg") if "x" in mark]) == len(known)


def test_strata_are_shaded_by_cost_and_tell_interval_and_tokens() -> None:
    made = Page(page(full()))
    (heads, *rows) = made.tables["by-stratum"]
    assert [cell.text for cell in heads] == ["stratum", "tokens", "all together", "layers.0", "layers.1"]
    named = ["domain code", "domain <law> & [red]", "position 1-3", "position 4-15"]
    assert [row[0].text for row in rows] == named, "what has no token is left out"
    for row, cost in zip(rows, (0.1, 0.4, 0.1, 0.4), strict=True):
        assert row[2].attributes["style"] == f"--shade:{cost / 0.4:.3f}"
        assert row[2].attributes["title"] == "95 % [+0.200, +0.300]\n500 tokens"
        assert [cell.attributes["class"] for cell in row[2:]] == ["joint", "single", "single"]


def test_histograms_of_kl_share_their_scales() -> None:
    rows = list(full().sites)
    rows[0] = dataclasses.replace(rows[0], kl_histogram=[40 if at == 20 else 0 for at in range(KL_BINS)])
    made = Page(page(full(sites=rows)))
    heights = [
        [percent_of(mark["height"]) / 95 for mark in chart.marks("rect")]
        for chart in made.charts("where-the-divergence-is")
    ]
    assert heights == [pytest.approx(wanted, abs=0.001) for wanted in ([1.0], [0.75, 0.25], [0.75, 0.25])]
    first, second, _ = made.charts("where-the-divergence-is")
    assert first.marks("rect")[0]["x"] == second.marks("rect")[0]["x"]
    above = [cell.text for cell in made.column("where-the-divergence-is", "tokens above 0.1")]
    assert above == ["0.0%", "25.0%", "25.0%"]
    assert [cell.text for cell in made.column("where-the-divergence-is", "tokens above 1")][2:] == ["0.0%"]


def test_every_abbreviation_of_a_heading_tells_its_meaning() -> None:
    made = Page(page(full()))
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(one)}(?!\w)" for one in sorted(ABBREVIATIONS, key=len)[::-1]))
    heads = [cell for rows in made.tables.values() for cell in rows[0]]
    explained = 0
    for head in heads:
        wanted = [ABBREVIATIONS[one] for one in pattern.findall(head.text)]
        assert [a["title"] for a in head.marks("abbr")] == wanted, head.text
        explained += len(wanted)
    assert explained > 20
