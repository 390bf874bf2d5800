"""The report as one self-contained HTML page: no network, no files beside it, and readable without its script."""

from __future__ import annotations

from html import escape

from saekernels.display.html import Tile, document
from saekernels.display.numbers import Interval, counted, number, percent, short_site, signed
from saekernels.eval.report.abbreviations import marked, note
from saekernels.eval.report.breadth_page import breadth_parts
from saekernels.eval.report.breadth_text import gap_sentence
from saekernels.eval.report.data import ReportData
from saekernels.eval.report.paired import paired_section
from saekernels.eval.report.reading import reading, weights_told
from saekernels.eval.report.reuse.page import reuse_parts
from saekernels.eval.report.reuse.text import reuse_sentence
from saekernels.eval.report.sections import (
    ablation_section,
    baseline_section,
    cost_section,
    cumulative_section,
    effective_section,
)
from saekernels.eval.report.whereabouts import domain_section, kl_section, strata_section, task_section


def page(report: ReportData) -> str:
    """The whole page as text."""
    counts = f"{counted(report.tokens, 'token')} of {counted(report.documents, 'document')}"
    sections = [
        cost_section(report),
        effective_section(report),
        cumulative_section(report),
        baseline_section(report),
        paired_section(report, {row.site: short_site(row.site) for row in report.sites}),
        ablation_section(report),
        domain_section(report),
        strata_section(report),
        kl_section(report),
        task_section(report),
        *_breadth_sections(report),
        *_reuse_sections(report),
        ("How it was measured", _method(report)),
    ]
    return document(
        f"Spliced loss of {report.model}",
        reading(report),
        [section for section in sections if section],
        report.to_dict(),
        facts=f"{counts}, windows of {report.context} tokens, seed {report.seed}{weights_told(report)}",
        notes=report.notes,
        tiles=tiles(report),
        mark=marked,
    )


def tiles(report: ReportData) -> list[Tile]:
    """The five figures on top, of all sites together or of the only one; "-" for what was not measured."""
    row = report.all_sites
    delta, recovered, worst = row.delta_ce, row.loss_recovered, row.worst
    targets = report.extras.get("effective_compute", {}).get("targets", {})
    worth = targets.get(row.site) or targets.get(report.sites[0].site) or {}
    share, ends = worth.get("share"), worth.get("share_ci95")
    beside = worth.get("outside") or _interval(ends and (100 * ends[0], 100 * ends[1]), "{:.0f}")
    return [
        Tile("ΔCE, nats per token", signed(delta.nats), _interval(delta.ci95, "{:+.3f}")),
        Tile("CE recovered", percent(recovered.mean), _percents(recovered.mean_ci95) or "of mean ablation's loss"),
        Tile("KL, nats per token", number(row.kl), _interval(row.kl_ci95, "{:.3f}")),
        Tile(
            "effective compute",
            "-" if share is None else f"{100 * share:.0f}%",
            beside if worth else "not measured",
        ),
        Tile(
            "worst stratum, ΔCE",
            signed(worst.delta_ce if worst else None),
            f"{worst.axis} {worst.stratum}" if worst else "",
        ),
    ]


def _interval(interval: Interval | None, form: str) -> str:
    return "[{}, {}]".format(*map(form.format, interval)) if interval else ""


def _percents(interval: Interval | None) -> str:
    return "[{}, {}]".format(*map(percent, interval)) if interval else ""


def _breadth_sections(report: ReportData) -> list[tuple[str, str]]:
    """What narrow probes cost inside and outside of their slice, if that was measured."""
    found = report.extras.get("breadth")
    if not found:
        return []
    (heading, body), *rest = breadth_parts(found)
    return [(heading, f"<p>{marked(gap_sentence(found))}</p>{body}"), *rest]


def _reuse_sections(report: ReportData) -> list[tuple[str, str]]:
    """How much of the dictionaries domains share, if that was measured."""
    found = report.extras.get("reuse")
    if not found:
        return []
    (heading, body), *rest = reuse_parts(found)
    told = [reuse_sentence(found), *found["notes"]]
    return [(heading, "".join(f"<p>{marked(one)}</p>" for one in told) + body), *rest]


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
    made = "\n".join(map(note, lines))
    command = report.run.get("command")
    return made + (f"\n<p>To reproduce:</p>\n<pre>{escape(command)}</pre>" if command else "")
