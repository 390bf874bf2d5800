"""The tutorial as a notebook: committed without outputs, its cells run, and what they end with shows itself."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any

import matplotlib
import pytest
from matplotlib import pyplot

import saekernels
from places import ROOT

NOTEBOOK = ROOT / "docs" / "start" / "notebook.ipynb"


@pytest.fixture
def no_screen() -> Iterator[None]:
    before = matplotlib.get_backend()
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")
    pyplot.switch_backend(before)


def cells() -> list[dict[str, Any]]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def ran(source: str, state: dict[str, Any]) -> object:
    """The value of a cell's last line, if that is an expression, as a kernel shows it."""
    *body, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        body.append(last)
    exec(compile(ast.Module(body, []), "cell", "exec"), state)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), state) if isinstance(last, ast.Expr) else None


def test_it_is_committed_without_outputs() -> None:
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    assert len({cell["id"] for cell in cells()}) == len(cells())
    assert max(len(line.rstrip("\n")) for cell in cells() for line in cell["source"]) <= 120


def test_its_cells_run_and_show(no_screen: None, capsys: pytest.CaptureFixture[str]) -> None:
    state: dict[str, Any] = {"__name__": "notebook"}
    shown = [ran("".join(cell["source"]), state) for cell in cells() if cell["cell_type"] == "code"]
    drawn = {type(one).__name__: one._repr_html_() for one in shown if hasattr(one, "_repr_html_")}
    assert set(drawn) == {"SAE", "Codes", "Report"}
    assert "TopK(k=32)" in drawn["SAE"]
    report = state["report"]
    assert f"{report.all_sites.delta_ce.nats:+.3f}" in drawn["Report"]
    assert len(pyplot.get_fignums()) == 2
    assert state["right"].get_title() == "By domain"
    assert shown[-1] == state["watched"].events
    assert all(isinstance(one, saekernels.Fired) and one.latent == 865 for one in shown[-1])
    assert shown[-1]
    assert "nats per token clean" in capsys.readouterr().out
