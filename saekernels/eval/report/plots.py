"""The plots of the HTML page, as SVG text that takes its text colour and fonts from the page."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from saekernels.display.numbers import short_site
from saekernels.errors import missing_extra
from saekernels.eval.report.data import Report, SiteFigures
from saekernels.eval.sums.figures import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A colour that no plot uses: it becomes the page's text colour, so that the plots follow light and dark.
INK = "#010203"
BLUE, ORANGE, GREY = "#3b82c4", "#e08a2e", "#8a8f98"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "saekernels",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
}


def require_matplotlib() -> None:
    """Raise InputError if the plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_extra("matplotlib", "the HTML page") from error


def delta_plot(report: Report) -> str:
    """ΔCE of each site and of all together, with intervals."""
    rows = _rows(report)
    labels = [_label(row) for row in rows]

    def draw(axes: Any) -> None:
        for at, row in enumerate(rows):
            _bar(axes, at, row.delta_ce.nats, row.delta_ce.ci95, ORANGE if row.architecture == "joint" else BLUE)
        axes.set_xlabel("ΔCE, nats per token")

    return _svg(labels, draw)


def ablation_plot(report: Report) -> str:
    """The loss of each run on one scale: where the splice lies between the clean model and the ablations."""
    rows = _rows(report)
    kinds = (("clean", "o", GREY), ("spliced", "D", ORANGE), ("mean", "s", BLUE), ("zero", "x", INK))

    def draw(axes: Any) -> None:
        for kind, marker, colour in kinds:
            points = [(getattr(row.ce, kind), at) for at, row in enumerate(rows) if getattr(row.ce, kind) is not None]
            if points:
                axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, label=kind, zorder=3)
        axes.set_xlabel("cross-entropy, nats per token")
        axes.grid(axis="y", linewidth=0.4, alpha=0.4)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.5 / (1 + len(rows))), ncols=4)

    return _svg([_label(row) for row in rows], draw)


def domain_plot(report: Report) -> str:
    """ΔCE of all sites together by domain, worst first, with intervals."""
    domains = report.all_sites.domains
    names = sorted(domains, key=lambda name: -(domains[name].delta_ce.nats or 0.0))

    def draw(axes: Any) -> None:
        for at, name in enumerate(names):
            _bar(axes, at, domains[name].delta_ce.nats, domains[name].delta_ce.ci95, ORANGE)
        if report.all_sites.delta_ce.nats is not None:
            axes.axvline(report.all_sites.delta_ce.nats, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("ΔCE with all sites spliced, nats per token (dotted: all domains)")

    return _svg(names, draw)


def _rows(report: Report) -> list[SiteFigures]:
    return [*report.sites, report.all_sites] if len(report.sites) > 1 else list(report.sites)


def _label(row: SiteFigures) -> str:
    return "all together" if row.architecture == "joint" else short_site(row.site)


def _bar(axes: Any, at: int, value: float | None, interval: Interval | None, colour: str) -> None:
    if value is None:
        return
    axes.barh(at, value, color=colour, height=0.6)
    if interval is not None:
        axes.plot(interval, [at, at], color=INK, linewidth=1.2)


def _svg(labels: list[str], draw: Any) -> str:
    def rows(axes: Any) -> None:
        draw(axes)
        axes.set_yticks(range(len(labels)), [plain(label) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.axvline(0, color=INK, linewidth=0.6) if axes.get_xlim()[0] < 0 else None

    return svg((7.2, 1.1 + 0.34 * len(labels)), rows)


def plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def svg(size: tuple[float, float], draw: Any) -> str:
    """What draw(axes) makes, as SVG whose text has the page's colour and fonts; size in inches."""
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure: Figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    made = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    return made[made.index("<svg") :].replace(INK, "currentColor")
