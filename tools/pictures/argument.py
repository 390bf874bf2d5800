"""What a splice costs, layer by layer and together, beside the score that is usually reported."""

from __future__ import annotations

from typing import Any

from drawing import Drawing, Theme

WIDTH, HEIGHT = 830, 370
SCORE, COST, FULL = 132, 470, 250  # where the two columns of bars begin, and how long a full bar is
TOP, STEP, BAR = 92, 36, 18


def argument(report: dict[str, Any], theme: Theme) -> str:
    """The picture of a report (schema 1) of several sites with zero-point baselines and effective compute."""
    drawing = Drawing(WIDTH, HEIGHT, theme)
    together = report["all_sites"]
    longest = together["delta_ce"]["ci95"][1]
    _headings(drawing)
    for place, row in enumerate([*report["sites"], together]):
        joint = row is together
        _row(drawing, row, TOP + place * STEP + (14 if joint else 0), longest, joint)
    _closing(drawing, report)
    score = 100 * min(row["loss_recovered"]["mean"] for row in report["sites"])
    cost = together["delta_ce"]["nats"]
    title = f"At least {score:.1f} % of the loss recovered by every layer alone, and {cost:+.3f} nats by all together"
    return drawing.render(title, "; ".join(map(_words, [*report["sites"], together])))


def _headings(drawing: Drawing) -> None:
    theme = drawing.theme
    drawing.text(SCORE, 34, "Loss recovered", size=17, bold=True)
    drawing.text(SCORE, 55, "the usual score, against mean ablation", colour=theme.muted)
    drawing.text(COST, 34, "ΔCE, nats per token", size=17, bold=True)
    drawing.text(COST, 55, "what the splice costs, with 95 % intervals", colour=theme.muted)
    drawing.line(16, 72, WIDTH - 16, 72, theme.line)


def _row(drawing: Drawing, row: dict[str, Any], y: float, longest: float, joint: bool) -> None:
    theme = drawing.theme
    colour = theme.orange if joint else theme.blue
    middle, baseline = y + BAR / 2, y + BAR / 2 + 5
    drawing.text(16, baseline, _name(row), bold=joint, size=14)
    recovered = row["loss_recovered"]["mean"]
    drawing.rectangle(SCORE, y, FULL, BAR, theme.faint, radius=3)
    drawing.rectangle(SCORE, y, FULL * recovered, BAR, theme.grey, radius=3)
    drawing.text(SCORE + FULL + 8, baseline, f"{100 * recovered:.1f} %", bold=joint)
    scale = FULL / longest
    cost = row["delta_ce"]
    low, high = cost["ci95"]
    drawing.rectangle(COST, y, max(1.5, scale * cost["nats"]), BAR, colour, radius=2)
    drawing.line(COST + scale * low, middle, COST + scale * high, middle, theme.ink, width=1.5)
    for end in (low, high):
        drawing.line(COST + scale * end, middle - 4, COST + scale * end, middle + 4, theme.ink, width=1.5)
    drawing.text(COST + scale * high + 8, baseline, f"{cost['nats']:+.3f}", bold=joint, colour=colour)
    if joint:
        drawing.line(16, y - 15, WIDTH - 16, y - 15, theme.line)
        _random_errors(drawing, row, y, scale)


def _random_errors(drawing: Drawing, row: dict[str, Any], y: float, scale: float) -> None:
    """A mark at what random errors of the same norms cost."""
    theme = drawing.theme
    cost = row["baselines"]["random"]["delta_ce"]
    x = COST + scale * cost
    drawing.line(x, y - 4, x, y + BAR + 10, theme.ink, width=1.5, dashed=True)
    drawing.text(x, y + BAR + 25, f"random errors of the same size {cost:+.3f}", colour=theme.muted, anchor="middle")


def _closing(drawing: Drawing, report: dict[str, Any]) -> None:
    effective = report["extras"]["effective_compute"]["targets"][report["all_sites"]["site"]]
    share = f"{100 * effective['share']:.0f} %"
    text = f"All together, the model predicts like a smaller one of {share} of its training compute."
    drawing.text(16, HEIGHT - 34, text, size=14)
    source = f"{report['model']}, {report['tokens']:,} tokens of {report['documents']} held-out documents"
    drawing.text(16, HEIGHT - 12, source, colour=drawing.theme.muted)


def _name(row: dict[str, Any]) -> str:
    return "all together" if row["site"] == "all" else f"layer {row['site'].rpartition('.')[2]}"


def _words(row: dict[str, Any]) -> str:
    recovered, nats = row["loss_recovered"]["mean"], row["delta_ce"]["nats"]
    return f"{_name(row)}: {100 * recovered:.1f} % of the loss recovered, {nats:+.3f} nats"
