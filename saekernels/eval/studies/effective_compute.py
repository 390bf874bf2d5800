"""Adds effective compute to a report: what the clean and the spliced losses are worth in a family of models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from saekernels.errors import InputError
from saekernels.eval.report.data import ReportData
from saekernels.eval.studies.family import Family, equivalents, parametric_share


def effective_compute(report: ReportData, family: Family, name: str) -> tuple[dict[str, Any], list[str]]:
    """The section "effective_compute" of a report, and notes.

    Raises InputError if the family has other windows or was measured on other documents.
    """
    table = report.documents_table
    if table is None:
        raise InputError("family: the report has no figures per document")
    if family.context != report.context:
        raise InputError(
            f"family: measured with windows of {family.context} tokens, the evaluation has {report.context}"
        )
    losses: dict[str, Any] = {"clean": table.clean, **table.spliced}
    usable = {key: values for key, values in losses.items() if None not in values}
    found, notes = equivalents(family, usable, table.ids, table.tokens, report.bootstrap, report.seed)
    rows = {row.site: row for row in [*report.sites, report.all_sites]}
    clean = report.all_sites.ce.clean
    laws = {
        key: parametric_share(clean, row.ce.spliced)
        for key, row in rows.items()
        if clean is not None and row.ce.spliced is not None
    }
    section = {
        "family": name,
        "members": [
            {"name": m.name, "parameters": m.parameters, "train_tokens": m.train_tokens, "loss": m.loss}
            for m in family.members
        ],
        "targets": {key: asdict(one) for key, one in found.items()},
        "parametric_laws": laws,
    }
    return section, notes
