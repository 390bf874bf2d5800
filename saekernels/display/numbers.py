"""How numbers and names are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

Interval = tuple[float, float]
"""The lower and the upper end of a 95 % confidence interval."""


def counted(number: int, noun: str) -> str:
    """ "1 token", "50,195 tokens"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def short_site(site: str) -> str:
    """A site from the list of layers on: "model.layers.3.mlp@module" -> "layers.3.mlp@module".

    Where no part of it is a number, the last two parts.
    """
    base, mark, name = site.partition("#")
    parts = base.split(".")
    numbered = (index for index, part in enumerate(parts) if part.partition("@")[0].isdigit())
    first = next(numbered, len(parts) - 1)
    return ".".join(parts[max(0, first - 1) :]) + mark + name


def short_sites(sites: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What all sites begin with, and the rest of each by site; "" and the sites whole where they begin differently."""
    short = {site: short_site(site) for site in sites}
    beginnings = {site.removesuffix(rest) for site, rest in short.items()}
    return (beginnings.pop(), short) if len(beginnings) == 1 else ("", {site: site for site in sites})


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits, or a dash for a missing figure."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """Three digits with their sign, or a dash for a missing figure."""
    return "-" if value is None else f"{value:+.3f}"


def percent(value: float | None) -> str:
    """A fraction in percent with one digit, or a dash for a missing figure."""
    return "-" if value is None else f"{100 * value:.1f}%"


def number_interval(value: float | None, interval: Interval | None) -> str:
    """ "0.123 [0.110, 0.140]"."""
    return number(value) + (f" [{number(interval[0])}, {number(interval[1])}]" if interval else "")


def percent_interval(value: float | None, interval: Interval | None) -> str:
    """ "95.6% [95.1, 96.0]"."""
    return percent(value) + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def with_interval(value: float | None, interval: Interval | None) -> str:
    """ "+0.123 [+0.110, +0.140]"."""
    return signed(value) + (f" [{signed(interval[0])}, {signed(interval[1])}]" if interval else "")


def readable(number: float) -> str:
    """ "1.9 M", "940 k"."""
    for limit, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * limit:  # 999.7 rounds to the next unit, not to "1000"
            digits = max(0, 1 - math.floor(math.log10(max(number / limit, 1.0))))
            return f"{number / limit:.{digits}f}{unit}"
    return f"{number:.0f}"
