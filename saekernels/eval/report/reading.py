"""What a terminal and a page say alike: rows, cells, abbreviations, and the sentence that reads a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saekernels.display.numbers import (
    number,
    number_interval,
    percent,
    percent_interval,
    readable,
    short_site,
    short_sites,
    signed,
    with_interval,
)
from saekernels.eval.report.data import DomainFigures, ReportData, SiteFigures

SITE_HEADINGS = (
    "site", "ΔCE nats [95 %]", "bits/byte", "KL", "FVU", "L0", "dead",
    "top-1", "CE", "CE mean", "rec. mean", "CE zero", "rec. zero",
)  # fmt: skip
LEVEL = " [95 %]"
ABBREVIATIONS: dict[str, str] = {
    "CE": "cross-entropy, the mean negative log-probability of the next token, with the SAE spliced in; CE mean and CE "
    "zero: with the mean activation or zeros in its place; clean CE: of the model as it is",
    "ΔCE": "CE minus clean CE",
    "nats": "the unit of CE and KL, per token: 1 nat is 1.443 bits",
    "bits/byte": "ΔCE in bits per byte of text",
    "[95 %]": "the bootstrap interval over documents",
    "KL": "the divergence KL(clean ‖ spliced) of the predictions",
    "FVU": "the fraction of the activations' variance that is left unexplained",
    "L0": "active latents per token",
    "dead": "the share of latents that were never active",
    "top-1": "how often clean and spliced model agree on the likeliest token",
    "rec.": "the loss recovered, (CE ablated - CE) / (CE ablated - clean CE)",
    "PCA": "principal component analysis; the probe keeps as many components as the SAE has active latents",
}


def rows_of(report: ReportData) -> list[SiteFigures]:
    """Every SAE, and all sites together where there are several."""
    return [*report.sites, report.all_sites] if len(report.sites) > 1 else list(report.sites)


def label(row: SiteFigures) -> str:
    """The name of a row in charts and tables."""
    return "all together" if row.architecture == "joint" else short_site(row.site)


def site_cells(row: SiteFigures) -> list[str]:
    """The cells of one row, under SITE_HEADINGS."""
    return [
        "all together" if row.architecture == "joint" else row.site,
        with_interval(row.delta_ce.nats, row.delta_ce.ci95),
        with_interval(row.delta_ce.bits_per_byte, row.delta_ce.bits_per_byte_ci95),
        number_interval(row.kl, row.kl_ci95),
        number(row.fvu),
        number(row.l0, 1),
        percent(row.dead_fraction),
        percent_interval(row.top1_agreement, row.top1_agreement_ci95),
        number(row.ce.spliced),
        number(row.ce.mean),
        percent_interval(row.loss_recovered.mean, row.loss_recovered.mean_ci95),
        number(row.ce.zero),
        percent_interval(row.loss_recovered.zero, row.loss_recovered.zero_ci95),
    ]


def headed(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The headings, with "[95 %]" over the columns that hold intervals, and over no other."""
    columns = zip(*rows, strict=True)
    return [
        heading.removesuffix(LEVEL) + (LEVEL if any(cell.endswith("]") and " [" in cell for cell in cells) else "")
        for heading, cells in zip(headings, columns, strict=True)
    ]


def weights_told(report: ReportData) -> str:
    """How the model's weights came about, "; weights: Q4_1 GGUF, dequantised to float32"; "" for nothing to tell."""
    return "".join(f"; {key}: {report.run[key]}" for key in ("weights", "adapter", "revision") if key in report.run)


def reading(report: ReportData) -> str:
    """One sentence that says what the result means."""
    row = report.all_sites
    # All together is the first SAE of each site.
    firsts = {one.site.partition("#")[0]: one for one in reversed(report.sites)}
    many = len(firsts) > 1
    subject = f"Splicing all {len(firsts)} SAEs together" if many else f"Splicing {report.sites[0].site}"
    if row.delta_ce.nats is None:
        return f"{subject} gives a loss that is not finite."
    verb = "raises" if row.delta_ce.nats >= 0 else "lowers"
    text = (
        f"{subject} {verb} the loss from {number(row.ce.clean)} to {number(row.ce.spliced)} nats per token "
        f"({with_interval(row.delta_ce.nats, row.delta_ce.ci95)}"
    )
    if row.delta_ce.bits_per_byte is not None:
        text += f"; {signed(row.delta_ce.bits_per_byte)} bits per byte"
    text += ")" + (f"; mean ablation gives {number(row.ce.mean)}" if row.ce.mean is not None else "")
    alone = {one.site: one.delta_ce.nats for one in firsts.values() if one.delta_ce.nats is not None}
    if many and alone:
        low, high = min(alone, key=alone.__getitem__), max(alone, key=alone.__getitem__)
        _, names = short_sites([one.site for one in report.sites])
        text += f"; alone, a site costs {signed(alone[low])} ({names[low]}) to {signed(alone[high])} ({names[high]})"
    worst = worst_of(row.domains)
    if worst is not None:
        text += f"; the worst domain is {worst} with {signed(row.domains[worst].delta_ce.nats)}"
    targets = report.extras.get("effective_compute", {}).get("targets", {})
    name = row.site if row.site in targets else report.sites[0].site
    if name in targets:
        text += f". It {worth(targets[name])}"
    return text + "."


def worst_of(parts: Mapping[str, DomainFigures], least: float = 0) -> str | None:
    """The domain or stratum of at least so many tokens with the largest ΔCE, if there are several."""
    known = {
        name: part.delta_ce.nats
        for name, part in parts.items()
        if part.delta_ce.nats is not None and part.tokens >= least
    }
    return max(known, key=known.__getitem__) if len(known) > 1 else None


def worth(one: Mapping[str, Any]) -> str:
    """ "predicts like a model of 940 k parameters, 25 % of the training compute [21, 30]"."""
    if one["outside"]:
        return f"predicts {one['outside']} of the family"
    text = f"predicts like a model of {readable(one['parameters'])} parameters"
    if one["share"] is not None:
        text += f", {100 * one['share']:.0f} % of the training compute"
        if one["share_ci95"]:
            low, high = one["share_ci95"]
            text += f" [{100 * low:.0f}, {100 * high:.0f}]"
    elif one["parameters_ci95"]:
        low, high = one["parameters_ci95"]
        text += f" [{readable(low)}, {readable(high)}]"
    return text
