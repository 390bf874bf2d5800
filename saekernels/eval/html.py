"""The report as one self-contained HTML page: no scripts, no files beside it, no network."""

from __future__ import annotations

from html import escape

from .plots import ablation_plot, delta_plot, domain_plot
from .report import Report
from .table import SITE_HEADINGS, number, percent, reading, signed, site_cells, with_interval
from .wording import counted

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --paper: #ffffff; --soft: #5d6470; --line: #d9dde3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15181d; --soft: #9aa3af; --line: #343a43; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.soft { color: var(--soft); } .reading { font-size: 1.1rem; border-left: 4px solid #e08a2e; padding-left: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.joint { font-weight: 600; }
svg { max-width: 100%; height: auto; } svg text { font-family: system-ui, sans-serif !important; }
"""
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


def page(report: Report) -> str:
    """The whole page as text."""
    title = f"Spliced loss of {report.model}"
    counts = f"{counted(report.tokens, 'token')} of {counted(report.documents, 'document')}"
    facts = f"{counts}, windows of {report.context} tokens, seed {report.seed}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(facts)}</p>',
        f'<p class="reading">{escape(reading(report))}</p>',
        *(f"<p><strong>Note:</strong> {escape(note)}</p>" for note in report.notes),
        "<h2>Cost of each splice</h2>",
        delta_plot(report),
        _site_table(report),
        "<h2>Between the clean model and ablation</h2>",
        ablation_plot(report),
        *(_domain_section(report) if len(report.all_sites.domains) > 1 else []),
        _method(report),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _site_table(report: Report) -> str:
    rows = [*report.sites, report.all_sites] if len(report.sites) > 1 else report.sites
    return _table(SITE_HEADINGS, [site_cells(row) for row in rows], last_is_joint=len(report.sites) > 1)


def _domain_section(report: Report) -> list[str]:
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
    return ["<h2>By domain, all sites spliced</h2>", domain_plot(report), _table(_DOMAIN_HEADINGS, cells)]


def _table(headings: tuple[str, ...], rows: list[list[str]], last_is_joint: bool = False) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = []
    for number_, row in enumerate(rows, 1):
        mark = ' class="joint"' if last_is_joint and number_ == len(rows) else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _method(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    how = ", ".join(f"{key} {value}" for key, value in report.run.items())
    lines = [
        "ΔCE is the cross-entropy of the spliced model minus that of the clean one. Intervals are 95 % percentile "
        f"intervals of {report.bootstrap:,} bootstrap replicates over documents; ΔCE is paired.",
        report.mask,
        "Rec.: (ablated - spliced) / (ablated - clean). Mean ablation puts in the mean over all touched positions.",
        f"Run: {how}.",
        f"Versions: {versions}.",
    ]
    return "<h2>How it was measured</h2>\n" + "\n".join(f'<p class="soft">{escape(line)}</p>' for line in lines)
