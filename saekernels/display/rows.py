"""Charts that run through the rows of an HTML table: bars, intervals and points on one scale, sorted as the rows are.

Places are percentages of the cell's width, so that a chart fits any screen and its text stays text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from saekernels.display.charts import GREY
from saekernels.display.html import Cell
from saekernels.display.numbers import Interval

_SHAPES = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "square": "M-3.5 -3.5h7v7h-7z",
    "diamond": "M0 -5.5L5.5 0L0 5.5L-5.5 0z",
    "triangle": "M0 -5L5 4H-5z",
    "cross": "M-4 -4L4 4M-4 4L4 -4",
}
_MOST_TICKS = 6


@dataclass(frozen=True)
class Scale:
    """A stretch of numbers across a cell; ticks are the numbers written on its axis."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 to 100; values beyond an end lie on it."""
        if self.log and value <= 0:
            return 0.0
        low, high, at = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return 100 * min(max((at - low) / (high - low), 0.0), 1.0)


def linear_scale(values: Iterable[float | None], with_zero: bool = True) -> Scale:
    """From and to round numbers around the known values, and 0 if asked for."""
    known = [value for value in values if value is not None] + ([0.0] if with_zero else [])
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    spread = (high - low) or abs(high) or 1.0
    decade = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(times * decade for times in (1, 2, 5, 10) if spread / (times * decade) <= 4 + 1e-9)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(step * at, 12) for at in range(first, max(last, first + 1) + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def log_scale(values: Iterable[float | None]) -> Scale:
    """Whole decades around the positive values."""
    logs = [math.log10(value) for value in values if value is not None and value > 0] or [0.0]
    first, last = math.floor(min(logs) + 1e-9), math.ceil(max(logs) - 1e-9)
    last = max(last, first + 1)
    step = math.ceil((last - first) / _MOST_TICKS)
    return Scale(10.0**first, 10.0**last, tuple(10.0**at for at in range(first, last + 1, step)), log=True)


def bar(scale: Scale, value: float | None, colour: str) -> str:
    """From zero, or from the low end of a scale without it."""
    if value is None:
        return ""
    left, right = sorted((scale.place(0.0), scale.place(value)))
    return f'<rect x="{left:.2f}%" width="{right - left:.2f}%" y="30%" height="40%" fill="{colour}"/>'


def column(scale: Scale, low: float, high: float, share: float, colour: str) -> str:
    """One bin of a histogram; share: of the cell's height."""
    left, right = scale.place(low), scale.place(high)
    place = f'x="{left:.2f}%" width="{right - left:.2f}%" y="{100 - 95 * share:.2f}%" height="{95 * share:.2f}%"'
    return f'<rect {place} fill="{colour}"/>'


def interval_line(scale: Scale, interval: Interval | None, colour: str = "currentColor") -> str:
    """A line from one end of an interval to the other, as SVG; nothing for None."""
    if interval is None:
        return ""
    low, high = map(scale.place, interval)
    ends = f'x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"'
    return f'<line {ends} stroke="{colour}" stroke-width="2"/>'


def point(scale: Scale, value: float | None, colour: str, shape: str = "circle") -> str:
    """A mark; none for a value that has no place, such as a negative one on a logarithmic scale."""
    if value is None or (scale.log and value <= 0):
        return ""
    return f'<svg x="{scale.place(value):.2f}%" y="50%">{_mark(colour, shape)}</svg>'


def _mark(colour: str, shape: str) -> str:
    style = f'fill="none" stroke="{colour}" stroke-width="2"' if shape == "cross" else f'fill="{colour}"'
    return f'<path d="{_SHAPES[shape]}" {style}/>'


def row_chart(scale: Scale, marks: Sequence[str], tip: str = "", kind: str = "") -> Cell:
    """One row's piece of the chart, over the scale's grid; tip: its numbers, shown on hover."""
    grid = "".join(_grid(scale, tick) for tick in scale.ticks)
    body = f'<svg aria-hidden="true">{grid}{"".join(marks)}</svg>'
    return Cell(body, tip, f"plot {kind}".strip())


def _grid(scale: Scale, tick: float) -> str:
    at = f"{scale.place(tick):.2f}%"
    colour = f' stroke="{GREY}"' if tick == 0 and scale.low < 0 else ' class="grid"'
    return f'<line x1="{at}" x2="{at}" y1="0" y2="100%"{colour}/>'


def axis(scale: Scale, title: str) -> Cell:
    """The heading over the chart: its title (HTML) and the numbers of its ticks."""
    numbers = "".join(
        f'<text x="{scale.place(tick):.2f}%" y="0.8rem" text-anchor="middle">{tick:g}</text>' for tick in scale.ticks
    )
    return Cell(f'{title}<svg class="axis">{numbers}</svg>', kind="plot")


def legend(marks: Mapping[str, tuple[str, str]]) -> str:
    """Name -> (colour, shape), as a line of HTML."""
    parts = [f'<span><svg class="key">{_mark(*mark)}</svg>{escape(name)}</span>' for name, mark in marks.items()]
    return f'<div class="legend" aria-hidden="true">{"".join(parts)}</div>'
