"""How numbers and names are written."""

from __future__ import annotations

from saekernels.eval.sums.figures import Interval


def counted(number: int, noun: str) -> str:
    """ "1 token", "50,195 tokens"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def short_site(site: str) -> str:
    """The part of a site that tells it from its neighbours: "model.layers.3" -> "layers.3"."""
    return ".".join(site.split(".")[-2:])


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits, or a dash for a missing figure."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def with_interval(value: float | None, interval: Interval | None) -> str:
    """ "+0.123 [+0.110, +0.140]"."""
    return signed(value) + (f" [{signed(interval[0])}, {signed(interval[1])}]" if interval else "")
