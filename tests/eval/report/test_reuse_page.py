"""The page of reuse: every figure of its tables is one of the result, and parts that were not measured are left out."""

from __future__ import annotations

import html
import re

import domains
import linked
from saekernels.eval.report.reuse.page import reuse_page
from saekernels.eval.report.reuse.text import as_text, link_rows, reuse_sentence, slice_rows
from saekernels.eval.studies.reuse.measure import measure_reuse
from saekernels.eval.studies.reuse.options import Options


def _words(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page)).replace("\u00a0", " ")


def _headings(page: str) -> list[str]:
    return [_words(heading) for heading in re.findall(r"<h2>(.*?)</h2>", page)]


def test_page_has_the_parts_that_were_measured() -> None:
    model = linked.Linked(24).eval()
    given = (model, domains.tokens(), linked.saes(), model.documents(4, 40))
    whole = {"model": "toy", **measure_reuse(*given, Options(latents=[6, 12], removed=2))}
    page = reuse_page(whole)
    headings = _headings(page)
    assert [heading.split(",")[0] for heading in headings] == [
        "What domains share", "From one domain to all", "From narrow to broad", "Links between layers",
        "What a domain's latents are worth", "ΔCE with 12 latents of one domain",
    ]  # fmt: skip
    assert page.count('<div class="chart"><svg') == 3
    assert reuse_sentence(whole) in _words(page)
    text = as_text(whole)
    for _, rows in (slice_rows(whole["sites"][1]), link_rows(whole)):
        for row in rows:
            assert all(cell in text for cell in row)
            assert all(cell.split(" [")[0] in page for cell in row[1:])
    some = {"model": "toy", **measure_reuse(*given, Options(parts=["sharing"], removed=0))}
    assert _headings(reuse_page(some)) == headings[:2]
    assert "slice" not in as_text(some)
