"""The finished evaluation as its user holds it: numbers that know how to show themselves and to be written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from saekernels.display.html import html_table
from saekernels.display.numbers import counted, with_interval
from saekernels.display.tables import WIDTH
from saekernels.eval.report.data import ReportData
from saekernels.eval.report.figures import plot
from saekernels.eval.report.page import page
from saekernels.eval.report.reading import SITE_HEADINGS, headed, reading, rows_of, site_cells
from saekernels.eval.report.terminal import as_text
from saekernels.files.checked import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Report(ReportData):
    """A finished evaluation. `tokens` counts predictions in the metrics; `nbytes` the UTF-8 bytes that they predict.

    Printed, it is the text that `saekernels eval` prints; as the last value of a notebook's cell, its sentence and the
    table of its sites.

    extras: results of further parts by name (effective compute, tasks, breadth, ...), JSON-ready.
    """

    def __str__(self) -> str:
        return as_text(self, WIDTH, styled=False)

    def __repr__(self) -> str:
        change = with_interval(self.all_sites.delta_ce.nats, self.all_sites.delta_ce.ci95)
        return f"<Report of {self.model!r}: {counted(self.tokens, 'token')}, ΔCE {change} nats per token>"

    def _repr_html_(self) -> str:
        cells = [site_cells(row) for row in rows_of(self)]
        table = html_table(headed(SITE_HEADINGS, cells), cells, last_is_joint=len(cells) > 1)
        return f"<div><p>{escape(reading(self))}</p>{table}</div>"

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, whole or not at all."""
        write_whole(path, self.to_json())

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained HTML page with plots, whole or not at all. Needs matplotlib."""
        write_whole(path, page(self))

    def plot(self, by: str = "site", ax: Axes | None = None) -> Axes:
        """ΔCE in nats per token, with its 95 % intervals, on matplotlib's axes; all that is drawn can be restyled.

        Args:
            by: "site": each SAE alone and all together, beside the baselines, logarithmic from the smallest figure on;
                "cumulative": the first l sites together, beside the sum of each alone; "domain", or another axis of
                `all_sites.strata`: all SAEs together in each part of the text.
            ax: axes to draw into. If None, those of a new figure of pyplot, which a notebook shows: `.figure`.

        Raises InputError (a ValueError) for what the report does not have, and where matplotlib is not installed.
        """
        return plot(self, by, ax)
