"""The finished evaluation as its user holds it: numbers that know how to show themselves and to be written."""

from __future__ import annotations

import os
from dataclasses import dataclass

from saekernels.eval.report.data import ReportData
from saekernels.eval.report.page import page
from saekernels.files.checked import write_whole


@dataclass(frozen=True)
class Report(ReportData):
    """A finished evaluation. `tokens` counts predictions in the metrics; `nbytes` the UTF-8 bytes that they predict.

    extras: results of further parts by name (effective compute, tasks, breadth, ...), JSON-ready.
    """

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, whole or not at all."""
        write_whole(path, self.to_json())

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained HTML page with plots, whole or not at all. Needs matplotlib."""
        write_whole(path, page(self))
