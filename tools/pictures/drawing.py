"""SVG by hand: the same bytes on every machine, text that can be selected and searched, two themes."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, 'DejaVu Sans', sans-serif"


class Theme(NamedTuple):
    """Colours on GitHub's page in one of its modes."""

    name: str
    ink: str
    muted: str
    line: str
    faint: str
    grey: str
    blue: str
    orange: str
    green: str


LIGHT = Theme("light", "#1f2328", "#59636e", "#d1d9e0", "#f1f4f7", "#b6c0ca", "#2a6fbb", "#d4561e", "#3f8f5f")
DARK = Theme("dark", "#f0f6fc", "#9aa4af", "#3d444d", "#1a2028", "#5b6570", "#58a6ff", "#f08a4b", "#56b37f")
THEMES = (LIGHT, DARK)


def number(value: float) -> str:
    """Coordinates to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")


class Drawing:
    """Elements in the order of painting; units are CSS pixels at full width."""

    def __init__(self, width: float, height: float, theme: Theme) -> None:
        self.width, self.height, self.theme = width, height, theme
        self._elements: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        content: str,
        *,
        size: float = 13,
        colour: str = "",
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """One line whose baseline is at y; anchor: start, middle or end."""
        weight = ' font-weight="600"' if bold else ""
        self._elements.append(
            f'<text x="{number(x)}" y="{number(y)}" font-size="{number(size)}" fill="{colour or self.theme.ink}" '
            f'text-anchor="{anchor}"{weight}>{escape(content)}</text>'
        )

    def rectangle(
        self, x: float, y: float, width: float, height: float, fill: str, *, radius: float = 0, stroke: str = "none"
    ) -> None:
        self._elements.append(
            f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}" '
            f'rx="{number(radius)}" fill="{fill}" stroke="{stroke}"/>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dashed: bool = False
    ) -> None:
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        self._elements.append(
            f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" stroke="{colour}" '
            f'stroke-width="{number(width)}"{dashes}/>'
        )

    def circle(self, x: float, y: float, radius: float, fill: str) -> None:
        self._elements.append(f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" fill="{fill}"/>')

    def path(self, steps: str, stroke: str, *, width: float = 1.5, fill: str = "none") -> None:
        self._elements.append(f'<path d="{steps}" fill="{fill}" stroke="{stroke}" stroke-width="{number(width)}"/>')

    def render(self, title: str, description: str) -> str:
        """The whole file; title and description are what a screen reader says."""
        size = f'width="{number(self.width)}" height="{number(self.height)}"'
        box = f'viewBox="0 0 {number(self.width)} {number(self.height)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} role="img" font-family="{FONT}">'
        words = [f"<title>{escape(title)}</title>", f"<desc>{escape(description)}</desc>"]
        return "\n".join([head, *words, *self._elements, "</svg>"]) + "\n"
