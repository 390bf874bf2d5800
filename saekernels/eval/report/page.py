"""The report as one self-contained HTML page: no scripts, no files beside it, no network."""

from __future__ import annotations

from html import escape

from saekernels.display.html import document, html_table
from saekernels.display.numbers import counted, number, percent, signed, with_interval
from saekernels.eval.report.data import ReportData
from saekernels.eval.report.plots import ablation_plot, delta_plot, domain_plot
from saekernels.eval.report.reading import SITE_HEADINGS, reading, rows_of, site_cells
from saekernels.eval.report.sections import (
    baseline_section,
    breadth_sections,
    cumulative_section,
    effective_section,
    kl_section,
    strata_section,
    task_section,
)

_DOMAIN_HEADINGS = (
    "domain",
    "documents",
    "tokens",
    "CE clean",
    "CE spliced",
    "ΔCE nats [95 %]",
    "bits/byte",
    "KL",
    "top-1",
)


def page(report: ReportData) -> str:
    """The whole page as text."""
    counts = f"{counted(report.tokens, 'token')} of {counted(report.documents, 'document')}"
    facts = f"{counts}, windows of {report.context} tokens, seed {report.seed}"
    notes = "\n".join(f"<p><strong>Note:</strong> {escape(note)}</p>" for note in report.notes)
    sections = [
        ("Cost of each splice", delta_plot(report) + _site_table(report)),
        effective_section(report),
        cumulative_section(report),
        baseline_section(report),
        ("Between the clean model and ablation", ablation_plot(report)),
        ("By domain, all sites spliced", _domains(report)) if len(report.all_sites.domains) > 1 else None,
        strata_section(report),
        kl_section(report),
        task_section(report),
        *breadth_sections(report),
        ("How it was measured", _method(report)),
    ]
    title = f"Spliced loss of {report.model}"
    return document(title, reading(report), [section for section in sections if section], facts, notes)


def _site_table(report: ReportData) -> str:
    rows = rows_of(report)
    return html_table(SITE_HEADINGS, [site_cells(row) for row in rows], last_is_joint=len(report.sites) > 1)


def _domains(report: ReportData) -> str:
    cells = [
        [
            name,
            f"{part.documents:,}",
            f"{part.tokens:,}",
            number(part.ce.clean),
            number(part.ce.spliced),
            with_interval(part.delta_ce.nats, part.delta_ce.ci95),
            signed(part.delta_ce.bits_per_byte),
            number(part.kl),
            percent(part.top1_agreement),
        ]
        for name, part in report.all_sites.domains.items()
    ]
    return domain_plot(report) + html_table(_DOMAIN_HEADINGS, cells)


def _method(report: ReportData) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    hidden = ("command", "computed_once")
    how = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report.run.items() if key not in hidden)
    lines = [
        "ΔCE is the cross-entropy of the spliced model minus that of the clean one. Intervals are 95 % percentile "
        f"intervals of {report.bootstrap:,} bootstrap replicates over documents; ΔCE is paired.",
        report.mask,
        "Rec.: (ablated - spliced) / (ablated - clean). Mean ablation puts in the mean over all touched positions.",
        f"Run: {how}.",
        f"Versions: {versions}.",
    ]
    made = "\n".join(f'<p class="soft">{escape(line)}</p>' for line in lines)
    command = report.run.get("command")
    return made + (f"\n<p>To reproduce:</p>\n<pre>{escape(command)}</pre>" if command else "")
