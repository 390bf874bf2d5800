"""Charts by matplotlib: curves over named points and dots in named rows, on axes or as SVG text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from saekernels.display.numbers import Interval
from saekernels.errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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

Lines = Mapping[str, Sequence[float | None]]
"""Name -> the values over all points."""

# Orange is left out: it means all sites together.
_COLOURS = (BLUE, "#4c9f70", "#b05fa8", "#c2504c", GREY)


def require_matplotlib(purpose: str = "the HTML page") -> None:
    """Raise InputError if the plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_extra("matplotlib", purpose) from error


def curves(labels: Sequence[str], lines: Lines, ylabel: str, xlabel: str = "", **options: Any) -> str:
    """`draw_curves` as SVG."""
    size = 4.8, 2.6 + 0.2 * len(lines) / _columns(lines)
    return svg(size, lambda axes: draw_curves(axes, labels, lines, ylabel, xlabel, **options))


def _columns(lines: Lines) -> int:
    """Of the legend: two of long names would leave the curves no room."""
    return 1 if max(map(len, lines), default=0) > 24 else 2


def draw_curves(
    axes: Axes,
    labels: Sequence[str],
    lines: Lines,
    ylabel: str,
    xlabel: str = "",
    dashed: Callable[[str], bool] = lambda name: False,
    bands: Mapping[str, Sequence[Interval | None]] | None = None,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Lines over named points; None leaves a gap. A dashed line has the colour of the line of the same stem.

    colours: of lines that have one already.
    """
    taken = dict(colours or {})
    free = cycle(colour for colour in _COLOURS if colour not in taken.values())
    for name, values in lines.items():
        stem = name.rsplit(" ", 1)[0] if any(map(dashed, lines)) else name
        if stem not in taken:
            taken[stem] = next(free)
        colour = taken[stem]
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
    axes.axhline(0, color=_ink(), linewidth=0.5)
    if len(lines) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=_columns(lines))


@dataclass(frozen=True)
class Dots:
    """What stands in every row of a chart: (value, interval), either None; its colour, and matplotlib's marker."""

    values: Sequence[tuple[float | None, Interval | None]]
    colour: str
    marker: str


def draw_dots(axes: Axes, labels: Sequence[str], dots: Mapping[str, Dots], xlabel: str) -> None:
    """Named rows from top to bottom, in each a mark and its interval of all that `dots` names."""
    for number, (name, one) in enumerate(dots.items()):
        shift = 0.12 * (number - (len(dots) - 1) / 2)
        known = [(x, row + shift, ends) for row, (x, ends) in enumerate(one.values) if x is not None]
        for _, y, ends in known:
            if ends is not None:
                axes.plot(ends, (y, y), color=one.colour, linewidth=1.5)
        if known:
            xs, ys, _ = zip(*known, strict=True)
            axes.plot(xs, ys, one.marker, color=one.colour, markersize=6, label=plain(name))
    axes.set_yticks(range(len(labels)), [plain(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    axes.axvline(0, color=_ink(), linewidth=0.5)
    if len(dots) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)


def _ink() -> Any:
    """The colour of axes in the style that holds now: a page's, or that of who draws."""
    import matplotlib as mpl

    return mpl.rcParams["axes.edgecolor"]


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
