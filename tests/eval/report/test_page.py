"""The HTML page: its figures are the report's, it needs no script, and no name gets out of its place."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from reports import Page, full, report, site
from saekernels.eval.report.abbreviations import ABBREVIATIONS
from saekernels.eval.report.page import page, tiles

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=y>\"'&\u2028"


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


def test_every_abbreviation_of_a_heading_tells_its_meaning() -> None:
    made = Page(page(full()))
    pattern = re.compile(
        "|".join(rf"(?<!\w){re.escape(one)}(?![^\W\d])" for one in sorted(ABBREVIATIONS, key=len)[::-1])
    )
    heads = [cell for rows in made.tables.values() for cell in rows[0]]
    explained = 0
    for head in heads:
        wanted = [ABBREVIATIONS[one] for one in pattern.findall(head.text)]
        assert [a["title"] for a in head.marks("abbr")] == wanted, head.text
        explained += len(wanted)
    assert explained > 20
