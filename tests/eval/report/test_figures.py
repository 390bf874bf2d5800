"""A report on matplotlib's axes: every figure and interval where it belongs, and the caller's axes and style."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import matplotlib
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import full, report
from saekernels.errors import InputError
from saekernels.eval import Report
from saekernels.eval.report.data import BaselineFigures


@pytest.fixture(autouse=True)
def no_screen() -> Iterator[None]:
    before = matplotlib.get_backend()
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")
    pyplot.switch_backend(before)


def marks(axes: Axes) -> dict[str, list[float]]:
    """Legend's name -> where its marks lie, from the first row on."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): list(map(float, line.get_xdata())) for line in lines}


def intervals(axes: Axes) -> list[tuple[float, ...]]:
    lines = [line for line in axes.get_lines() if str(line.get_label()).startswith("_")]
    return sorted(tuple(map(float, line.get_xdata())) for line in lines if len(set(line.get_ydata())) == 1)


def labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def with_baselines() -> Report:
    value = full()

    def measured(delta: float | None) -> BaselineFigures:
        return BaselineFigures(4.0, delta, None if delta is None else (delta - 0.5, delta + 0.5), None, None)

    kinds = {"zero": measured(7.0), "mean": measured(None)}
    rows = [dataclasses.replace(row, baselines=kinds) for row in (*value.sites, value.all_sites)]
    return dataclasses.replace(value, sites=rows[:-1], all_sites=rows[-1])


def test_each_site_and_all_together_beside_the_baselines() -> None:
    axes = with_baselines().plot()
    assert marks(axes) == {"the SAE": [0.05, 0.25, 0.5], "zeros": [7.0] * 3}
    assert intervals(axes) == [*[(0.2, 0.3)] * 3, *[(6.5, 7.5)] * 3]
    assert labels(axes) == ["layers.0", "layers.1", "all together"]
    assert axes.get_xscale() == "symlog"
    assert pyplot.get_fignums() == [axes.figure.number]  # type: ignore[union-attr]
    assert report().plot().get_xscale() == "linear"


def test_strata_have_a_row_each_and_names_are_no_mathematics() -> None:
    value = full()
    axes = value.plot("domain")
    assert marks(axes) == {"all SAEs together": [0.1, 0.4]}
    assert labels(axes) == ["code", "<law> & [red]"]
    assert labels(value.plot("position")) == ["1-3", "4-15"], "no row without tokens"
    hostile = {r"$\frac{": next(iter(value.all_sites.domains.values()))}
    axes = dataclasses.replace(value, all_sites=dataclasses.replace(value.all_sites, domains=hostile)).plot("domain")
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    assert labels(axes) == [r"\$\frac{"]


def test_the_callers_axes_and_style_are_used() -> None:
    with matplotlib.rc_context({"axes.edgecolor": "#abcdef"}):
        own = Figure().add_subplot()
        assert full().plot("cumulative", ax=own) is own
    assert pyplot.get_fignums() == []
    lines = {str(line.get_label()): line for line in own.get_lines()}
    assert list(lines["spliced together"].get_ydata()) == [0.05, 0.25]
    assert list(lines["sum of each alone"].get_ydata()) == [0.05, pytest.approx(0.3)]
    assert "#abcdef" in {line.get_color() for line in own.get_lines()}


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"by: got 'cumulative', need one of site, domain$"):
        report().plot("cumulative")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"a plot needs the package 'matplotlib'.*saekernels\[eval\]"):
        report().plot()
