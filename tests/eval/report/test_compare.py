"""`saekernels compare`: paired differences of two reports."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_lm
from saekernels.cli import main
from saekernels.eval import InputError, evaluate
from saekernels.eval.report.compare import as_text, compare, read_report
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from tiny_lm import SITES


@functools.cache
def _report(first: int, second: int, tokens: int | None) -> str:
    saes = {SITES[0]: tiny_lm.sae(first), SITES[1]: tiny_lm.sae(second)}
    model, tokenizer = tiny_lm.trained_model(), tiny_lm.tokenizer()
    return evaluate(
        model, tokenizer, saes, tiny_lm.documents(), tokens=tokens, bootstrap=0, baselines=(), cumulative=False
    ).to_json()


def report(first: int = 0, second: int = 1, tokens: int | None = None) -> Any:
    return json.loads(_report(first, second, tokens))


def test_a_report_against_itself_is_no_difference() -> None:
    found = compare(report(), report(), ("a", "b"))
    assert [row.target for row in found.rows] == [*SITES, "all"]
    for row in found.rows:
        assert row.difference == 0
        assert row.ci95 == (0, 0)
        assert row.kl_difference == 0
    assert found.notes == []
    assert found.clean_difference == 0
    assert "no difference can be told apart from none" in as_text(found)


def test_differences_and_intervals_by_hand() -> None:
    a, b = report(0, 1), report(0, 5)
    found = {row.target: row for row in compare(a, b, ("a", "b"), samples=300, seed=3).rows}
    assert found[SITES[0]].difference == pytest.approx(0, abs=1e-9)
    row, table, other = found[SITES[1]], a["documents_table"], b["documents_table"]
    tokens = np.array(table["tokens"], dtype=float)
    deltas = [(np.array(t["spliced"][SITES[1]]) - np.array(t["clean"])) * tokens for t in (table, other)]
    assert row.delta_a == pytest.approx(deltas[0].sum() / tokens.sum())
    assert row.difference == pytest.approx((deltas[1] - deltas[0]).sum() / tokens.sum())
    assert row.delta_a == pytest.approx(a["sites"][1]["delta_ce"]["nats"], abs=1e-9)
    kls = [np.array(t["kl"][SITES[1]]) * tokens for t in (table, other)]
    drawn = resample_totals(np.column_stack([tokens, *deltas, *kls]), 300, 3)
    assert row.ci95 == pytest.approx(percentiles((drawn[:, 2] - drawn[:, 1]) / drawn[:, 0]))
    assert row.kl_difference == pytest.approx((kls[1] - kls[0]).sum() / tokens.sum())
    turned = {r.target: r for r in compare(b, a, ("b", "a"), samples=300, seed=3).rows}[SITES[1]]
    assert turned.difference == pytest.approx(-row.difference)
    assert turned.ci95 is not None
    assert row.ci95 is not None
    assert turned.ci95[0] == pytest.approx(-row.ci95[1])


def test_all_sites_together_are_named_where_they_are_others() -> None:
    fewer = report()
    for figures in (fewer["documents_table"]["spliced"], fewer["documents_table"]["kl"]):
        del figures[SITES[1]]
    found = compare(report(), fewer, ("a", "b"))
    assert [row.target for row in found.rows] == [SITES[0], "all (2 / 1 sites)"]
    assert found.notes == [
        f"All sites together are others: A alone has {SITES[1]}. Their difference is that of the sites, too."
    ]


def test_only_documents_in_both_count() -> None:
    found = compare(report(), report(tokens=200), ("a", "b"))
    shared = len(report(tokens=200)["documents_table"]["ids"])
    assert 0 < found.documents <= shared < len(report()["documents_table"]["ids"])
    assert "Left out" in found.notes[0]
    for row in found.rows:
        assert row.difference == pytest.approx(0, abs=1e-6), "other batches, so other rounding"


def test_single_sites_are_matched_whatever_their_names() -> None:
    a, b = report(), report()
    for data, site in ((a, SITES[0]), (b, SITES[1])):
        table = data["documents_table"]
        table["spliced"], table["kl"] = ({site: table[key][site]} for key in ("spliced", "kl"))
    (row,) = compare(a, b, ("a", "b")).rows
    assert row.target == f"{SITES[0]} / {SITES[1]}"
    assert row.difference != 0
    assert "costs less, by" in as_text(compare(a, b, ("a", "b"))) or "apart from none" in as_text(
        compare(a, b, ("a", "b"))
    )


def test_other_clean_losses_are_said() -> None:
    other = report()
    other["documents_table"]["clean"] = [value + 0.25 for value in other["documents_table"]["clean"]]
    found = compare(report(), other, ("a", "b"))
    assert found.clean_difference == pytest.approx(0.25)
    assert "+0.250000 nats per token: not the same model" in found.notes[0]


def test_nothing_in_common() -> None:
    other = report()
    other["documents_table"]["ids"] = ["x"] * len(other["documents_table"]["ids"])
    with pytest.raises(InputError, match="no document in common"):
        compare(report(), other, ("a", "b"))
    other = report()
    table = other["documents_table"]
    table["spliced"] = {f"other {key}": value for key, value in table["spliced"].items()}
    with pytest.raises(InputError, match="no target in common"):
        compare(report(), other, ("a", "b"))


def test_compare_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, out = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "out.json"
    a.write_text(json.dumps(report(0, 1)))
    b.write_text(json.dumps(report(0, 5)))
    assert main(["compare", str(a), str(b), "--json", str(out), "--bootstrap", "100"]) == 0
    told = capsys.readouterr().out
    assert str(a) in told
    assert "B - A" in told
    data = json.loads(out.read_text())
    assert [row["target"] for row in data["rows"]] == [*SITES, "all"]
    assert data["names"] == [str(a), str(b)]
    for content, message in (
        ("{", "cannot read"),
        ("[]", "is no report of saekernels eval"),
        ('{"schema": 1}', "has no figures per document"),
    ):
        b.write_text(content)
        with pytest.raises(InputError, match=message):
            read_report(b)
        assert main(["compare", str(a), str(b)]) == 2
        assert message in capsys.readouterr().err
    damaged = copy.deepcopy(report())
    del damaged["documents_table"]["tokens"]
    b.write_text(json.dumps(damaged))
    assert main(["compare", str(a), str(b)]) == 2
    assert "documents_table" in capsys.readouterr().err
