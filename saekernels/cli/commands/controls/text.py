"""What `saekernels controls` prints: one table per part, and what its columns mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saekernels.display.numbers import (
    counted,
    number,
    percent,
    percent_interval,
    short_sites,
    signed,
    with_interval,
)
from saekernels.display.tables import text_table
from saekernels.eval.report.reading import headed

_ERROR = (
    "predicted: the share of the error's variance about its mean that an affine map of the input predicts on documents "
    "that it was not fitted on; of the norm: the same of the error's norm. +: the SAE's output and that part of its "
    "error; with the whole error the model is the clean one to rounding. ΔCE: nats per token, [95 %] over documents."
)
_BITS = (
    "numbers: active latents per token, or the probe's rank. bits/token: which latents, and their values, quantised "
    "until the squared error rises by {rise}; of a probe its coefficients. Gaussian: what an ideal linear code takes "
    "at that FVU. ΔCE: of the quantised output."
)
_SEEDS = (
    "cosine: of decoder rows; the share of latents of A whose nearest of B reaches it. one to one: pairs that are each "
    "other's nearest, cosine at least 0.7. IoU, r: mean overlap of activity, and mean correlation, of A's busiest "
    "latents with the best of B{off}."
)


def as_text(result: Mapping[str, Any]) -> str:
    """All tables."""
    _, names = short_sites([row["site"] for row in result["sites"]])
    documents, mask = result["documents"], result["mask"]
    head = (
        f"{result['model']}: {counted(result['tokens'], 'token')} of {counted(documents['measured'], 'document')} "
        f"measured, {counted(documents['fitted'], 'document')} fitted on; clean CE {number(result['clean_ce'])}"
    )
    if mask["leave_first"]:
        head += f"; the first {mask['leave_first']} of each window left alone"
    if mask["leave_norm"] is not None:
        head += f"; norms above {mask['leave_norm']:g} medians left alone"
    tables: list[str] = []
    if any("error" in row for row in result["sites"]):
        tables.append(_error(result["sites"], names, head))
    if any("bits" in row for row in result["sites"]):
        tables.append(_bits(result["sites"], names, "" if tables else head, percent(result["rise"])))
    tables += [_seeds(group, names, "" if tables else head) for group in result.get("seeds", [])]
    notes = [f"Note: {note}" for note in result["notes"]]
    return "\n".join([*(tables or [head + "\n"]), *notes]) + ("\n" if notes else "")


def _error(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], before: str) -> str:
    headings = ["error of", "predicted [95 %]", "of the norm", "ΔCE [95 %]", "+ predicted [95 %]", "+ rest [95 %]",
                "+ whole"]  # fmt: skip
    lines = []
    for row in rows:
        error, runs = row["error"], row["runs"]
        cells = [with_interval(runs[run]["delta_ce"], runs[run]["ci95"]) for run in ("sae", "linear", "remainder")]
        shares = [percent_interval(error["explained"], error["explained_ci95"]), percent(error["norm_explained"])]
        lines.append([names[row["site"]], *shares, *cells, signed(runs["whole"]["delta_ce"])])
    return text_table(headed(headings, lines), lines, before=before, after=_ERROR)


def _bits(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], before: str, rise: str) -> str:
    worth = any(row["worth"] for row in rows)
    headings = ["bits of", "code", "numbers", "FVU", "bits/token", "Gaussian", "ΔCE [95 %]"]
    lines = []
    for row in rows:
        for method, run, shown in (("sae", "quantised", "SAE"), ("pca", "pca", "PCA")):
            one, loss = row["bits"][method], row["runs"][run]
            cells = [number(one["numbers"], 1), number(one["fvu"]), number(one["bits"]["total"], 1),
                     number(one["gaussian_bits"], 1), with_interval(loss["delta_ce"], loss["ci95"])]  # fmt: skip
            lines.append([names[row["site"]], shown, *cells])
            if worth:
                lines[-1].append(_worth(row["worth"].get(run)))
    after = _BITS.format(rise=rise)
    if worth:
        headings.append("of training")
        after += " of training: the share of the training compute of the family's largest model that reaches that CE."
    return text_table(headed(headings, lines), lines, before=before, after=after, left=2)


def _worth(one: Mapping[str, Any] | None) -> str:
    if one is None or one["outside"]:
        return "-" if one is None else one["outside"].partition(" than ")[0]
    return percent(one["share"])


def _seeds(group: Mapping[str, Any], names: Mapping[str, str], before: str) -> str:
    headings = ["A", "B", "B - A [95 %]", "cosine 0.7", "cosine 0.9", "one to one", "IoU", "r"]
    off = any("off" in pair["activity"] for pair in group["pairs"])
    headings += ["IoU off", "r off"] if off else []
    lines = []
    for pair in group["pairs"]:
        decoder, activity = pair["decoder"]["a_in_b"]["active"], pair["activity"]
        cells = [with_interval(pair["b_minus_a"], pair["ci95"]), percent(decoder["0.7"]), percent(decoder["0.9"]),
                 f"{pair['decoder']['one_to_one']['0.7']:,}"]  # fmt: skip
        for text in ("on", "off") if off else ("on",):
            cells += [number(activity[text][name]["a_in_b"]["mean"], 2) for name in ("iou", "correlation")]
        lines.append([names[pair["a"]], names[pair["b"]], *cells])
    deltas = ", ".join(f"{names[entry]} {signed(one['nats'])}" for entry, one in group["delta_ce"].items())
    spread = (
        f"ΔCE at {group['site']}: {deltas}; range {number(group['range'])}, standard deviation {number(group['sd'])}, "
        f"beside intervals {number(group['interval_width'])} wide"
    )
    after = _SEEDS.format(off="; off: on the other text" if off else "")
    return text_table(
        headed(headings, lines), lines, before=f"{before}\n{spread}" if before else spread, after=after, left=2
    )
