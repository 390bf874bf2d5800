"""The charts of the HTML page lie where the numbers beside them say, in the same rows, in the same colours."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from reports import SHARES, Attributes, Page, baseline, full, report, site
from saekernels.display.charts import BLUE, ORANGE
from saekernels.eval.report.page import page
from saekernels.eval.report.sections import random_ratio
from saekernels.eval.sums.accumulate import KL_BINS


def percent_of(value: str | None) -> float:
    assert value is not None
    assert value.endswith("%")
    return float(value[:-1])


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
