"""How figures stand in the tables of docs/results.md, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

NONE = "–"


def nats(value: float | None, ci95: Sequence[float] | None = None) -> str:
    """A difference of losses to a thousandth of a nat, with its interval if there is one."""
    if value is None:
        return NONE
    return f"{value:+.3f}" + (f" [{ci95[0]:+.3f}, {ci95[1]:+.3f}]" if ci95 else "")


def cost(delta_ce: dict[str, Any]) -> str:
    """The same of a report's delta_ce."""
    return nats(delta_ce["nats"], delta_ce["ci95"])


def plain(value: float | None, ci95: Sequence[float] | None = None, digits: int = 3) -> str:
    """A number without a sign, with its interval if there is one."""
    if value is None:
        return NONE
    return f"{value:.{digits}f}" + (f" [{ci95[0]:.{digits}f}, {ci95[1]:.{digits}f}]" if ci95 else "")


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def layer(entry: str) -> str:
    """The number of the layer of "model.layers.14#name" or "model.layers.14.mlp@module"."""
    return next((part for part in entry.partition("#")[0].split(".") if part.isdigit()), entry)


def text_size(report: dict[str, Any]) -> str:
    """How much text a report is of."""
    return f"{report['tokens']:,} tokens of {report['documents']} documents"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
