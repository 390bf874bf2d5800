"""Charts that need no report: curves over named points, a heat map, a histogram, a dial. All as SVG text."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saekernels.errors import missing_extra

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

_COLOURS = (BLUE, ORANGE, "#4c9f70", "#b05fa8", "#c2504c", GREY)


def require_matplotlib() -> None:
    """Raise InputError if the plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_extra("matplotlib", "the HTML page") from error


def curves(
    labels: Sequence[str],
    lines: Mapping[str, Sequence[float | None]],
    ylabel: str,
    xlabel: str = "",
    dashed: Callable[[str], bool] = lambda name: False,
    bands: Mapping[str, Sequence[tuple[float, float] | None]] | None = None,
) -> str:
    """Lines over named points; None leaves a gap. A dashed line has the colour of the line of the same stem."""

    def draw(axes: Any) -> None:
        colours: dict[str, str] = {}
        for name, values in lines.items():
            stem = name.rsplit(" ", 1)[0] if any(map(dashed, lines)) else name
            colour = colours.setdefault(stem, _COLOURS[len(colours) % len(_COLOURS)])
            known = [(x, y) for x, y in enumerate(values) if y is not None]
            if known:
                style = "--" if dashed(name) else "-"
                axes.plot(*zip(*known, strict=True), style, marker="o", markersize=4, color=colour, label=plain(name))
            spans = [(x, band) for x, band in enumerate((bands or {}).get(name, ())) if band is not None]
            if spans:
                low, high = zip(*(band for _, band in spans), strict=True)
                axes.fill_between([x for x, _ in spans], low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xticks(range(len(labels)), [plain(label) for label in labels], rotation=0 if len(labels) < 7 else 45)
        axes.set_ylabel(ylabel)
        axes.set_xlabel(xlabel)
        axes.axhline(0, color=INK, linewidth=0.5)
        if len(lines) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)

    return svg((7.6, 3.2), draw)


def heat_map(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], label: str) -> str:
    """Numbers in cells shaded by size; None is left empty."""

    def draw(axes: Any) -> None:
        known = [abs(v) for row in values for v in row if v is not None]
        most = max(known, default=1.0) or 1.0
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value is None:
                    continue
                colour = ORANGE if value >= 0 else BLUE
                axes.add_patch(_square(x, y, colour, 0.08 + 0.72 * abs(value) / most))
                axes.text(x, y, f"{value:+.2f}", ha="center", va="center", fontsize=8)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [plain(c) for c in columns], fontsize=8)
        axes.set_yticks(range(len(rows)), [plain(r) for r in rows], fontsize=8)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_title(label, fontsize=9, loc="left")

    return svg((1.9 + max(0.75 * len(columns), 2.4), 0.9 + 0.26 * len(rows)), draw)


def _square(x: float, y: float, colour: str, strength: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=colour, alpha=strength, linewidth=0)


def histogram(edges: Sequence[float], counts: Mapping[str, Sequence[int]], label: str) -> str:
    """Shares of tokens over logarithmic bins; the first and the last bin are open."""

    def draw(axes: Any) -> None:
        logs = [math.log10(edge) for edge in edges]
        width = logs[1] - logs[0]
        places = [logs[0] - width, *logs]
        for (name, own), colour in zip(counts.items(), _COLOURS, strict=False):
            total = max(1, sum(own))
            axes.step(places, [100 * n / total for n in own], where="post", color=colour, label=plain(name))
        ticks = range(math.ceil(logs[0]), math.floor(logs[-1]) + 1)
        axes.set_xticks(list(ticks), [f"1e{tick}" for tick in ticks])
        axes.set_xlabel(label)
        axes.set_ylabel("% of tokens")
        if len(counts) > 1:
            axes.legend(fontsize=8)

    return svg((7.2, 2.8), draw)


def dial(share: float, interval: tuple[float, float] | None, text: str) -> str:
    """A half circle from 0 to 100 % with a needle and its interval."""

    def draw(axes: Any) -> None:
        def at(part: float, radius: float) -> tuple[float, float]:
            angle = math.pi * (1 - min(max(part, 0.0), 1.0))
            return radius * math.cos(angle), radius * math.sin(angle)

        def arc(first: float, last: float, **style: Any) -> None:
            steps = [first + (last - first) * i / 60 for i in range(61)]
            axes.plot(*zip(*(at(step, 1.0) for step in steps), strict=True), solid_capstyle="butt", **style)

        arc(0, 1, color=GREY, linewidth=14, alpha=0.3)
        arc(0, share, color=ORANGE, linewidth=14)
        if interval is not None:
            arc(interval[0], interval[1], color=INK, linewidth=4)
        axes.plot(*zip((0, 0), at(share, 0.82), strict=True), color=INK, linewidth=2)
        for part in (0, 0.25, 0.5, 0.75, 1):
            x, y = at(part, 1.2)
            axes.text(x, y, f"{100 * part:.0f} %", ha="center", va="center", fontsize=8)
        axes.text(0, -0.28, text, ha="center", va="center", fontsize=9)
        axes.set_xlim(-1.5, 1.5)
        axes.set_ylim(-0.42, 1.32)
        axes.set_aspect("equal")
        axes.axis("off")

    return svg((4.6, 2.7), draw)


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
