"""SAEs of one site beside the first that was given for it: differences in cross-entropy, paired by document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from saekernels.display.numbers import with_interval
from saekernels.eval.report.abbreviations import note, table
from saekernels.eval.report.data import Documents, ReportData
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.sums.figures import finite

HEADINGS = ["SAE", "beside", "ΔCE more than that [95 %]"]


def paired_part(documents: Documents, samples: int, seed: int) -> dict[str, Any]:
    """The part "paired" of a report by entry "SITE#LABEL", JSON-ready; {} where every site has one SAE.

    Each has the first entry of its site, the mean cross-entropy minus that one's in nats per token, and the 95 %
    interval of this difference over documents; None where a loss is not finite.
    """
    tokens = np.asarray(documents.tokens, dtype=np.float64)
    first: dict[str, str] = {}
    made: dict[str, Any] = {}
    for entry, means in documents.spliced.items():
        base = first.setdefault(entry.partition("#")[0], entry)
        if base == entry:
            continue
        columns = [np.array([np.nan if v is None else v for v in one]) for one in (means, documents.spliced[base])]
        rows = np.column_stack([tokens, (columns[0] - columns[1]) * tokens])
        total = rows.sum(0)
        value, interval = finite(float(total[1] / total[0])), None
        if samples and len(rows) > 1 and value is not None:
            drawn = resample_totals(rows, samples, (seed, 13))
            interval = percentiles(drawn[:, 1] / drawn[:, 0])
        made[entry] = {"beside": base, "difference": value, "ci95": interval}
    return made


def paired_rows(report: ReportData, names: Mapping[str, str]) -> list[list[str]]:
    """One row per further SAE of a site, under HEADINGS; none where every site has one."""
    return [
        [names[entry], names[one["beside"]], with_interval(one["difference"], one["ci95"])]
        for entry, one in report.extras.get("paired", {}).items()
    ]


def paired_section(report: ReportData, names: Mapping[str, str]) -> tuple[str, str] | None:
    """The section of the page, (heading, HTML)."""
    rows = paired_rows(report, names)
    text = "The difference of the two losses, resampled over documents: what makes a document hard cancels."
    return ("SAEs of one site", table(HEADINGS, rows) + note(text)) if rows else None
