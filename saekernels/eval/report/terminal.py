"""The report in a terminal: a table with the loss first, the domains, and one sentence that reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from saekernels.display.numbers import counted, number, percent, short_site, signed, with_interval
from saekernels.display.tables import PLAIN_WIDTH, TEXT_WIDTH
from saekernels.errors import missing_extra
from saekernels.eval.report.breadth_text import gap_sentence
from saekernels.eval.report.data import ReportData
from saekernels.eval.report.reading import SITE_HEADINGS, reading, rows_of, site_cells

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_FIRST_TO_GO = ("rec. zero", "CE", "dead", "CE zero", "L0", "FVU", "bits/byte", "CE mean", "top-1", "KL")
_CAPTION = "CE: spliced; mean, zero: ablated; rec.: share of that ablation's loss recovered"
_BASELINES = {"zero": "zeros", "mean": "mean", "random": "random error", "pca": "PCA probe"}
_MOST_SITE_COLUMNS = 6
_ENDLESS = 10_000


def print_report(report: ReportData, console: Console | None = None) -> None:
    """Print headline, tables and notes. Needs rich. Not cut to 80 columns when the output is not a terminal."""
    try:
        from rich.console import Console
        from rich.markup import escape
    except ImportError as error:
        raise missing_extra("rich", "the table") from error
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    console.print(escape(_title(report)), style="bold")
    console.print(fitting((site_table(report, _FIRST_TO_GO[:n]) for n in range(len(_FIRST_TO_GO) + 1)), console))
    if report.all_sites.baselines:
        console.print(fitting((baseline_table(report, n) for n in (1, 0)), console))
    if "tasks" in report.extras:
        console.print(task_table(report))
        console.print(escape(report.extras["tasks"]["reading"]), width=min(console.width, TEXT_WIDTH))
    if "breadth" in report.extras:
        console.print(escape(gap_sentence(report.extras["breadth"])), width=min(console.width, TEXT_WIDTH))
    if len(report.all_sites.domains) > 1:
        console.print(fitting((domain_table(report, alone) for alone in (True, False)), console))
    width = min(console.width, TEXT_WIDTH)
    console.print(escape(reading(report)), width=width)
    for note in report.notes:
        console.print(escape(f"Note: {note}"), style="yellow", width=width)


def as_text(report: ReportData) -> str:
    """What `print_report` prints where stdout goes, with colours if that is a terminal."""
    try:
        from rich.console import Console
    except ImportError as error:
        raise missing_extra("rich", "the table") from error
    console = Console(highlight=False)
    with console.capture() as capture:
        print_report(report, console)
    return capture.get()


def _title(report: ReportData) -> str:
    counts = f"{counted(report.tokens, 'token')} of {counted(report.documents, 'document')}"
    return f"{report.model}: {counts}, clean CE {number(report.all_sites.ce.clean)} nats per token"


def fitting(tables: Iterator[Table], console: Console) -> Table:
    """The first of the tables that is not wider than the console, or the last."""
    endless = console.options.update(max_width=_ENDLESS)
    table = next(tables)
    while console.measure(table, options=endless).maximum > console.width:
        narrower = next(tables, None)
        if narrower is None:
            break
        table = narrower
    return table


def site_table(report: ReportData, without: Sequence[str] = ()) -> Table:
    """One row per site, all sites together last."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=_box(), header_style="bold", pad_edge=False, caption_justify="left", caption=_CAPTION)
    kept = [heading for heading in SITE_HEADINGS if heading not in without]
    for heading in kept:
        table.add_column(heading, justify="left" if heading == "site" else "right", no_wrap=True)
    rows = rows_of(report)
    for row in rows:
        cells = dict(zip(SITE_HEADINGS, site_cells(row), strict=True))
        style = "bold" if row is report.all_sites else None
        table.add_row(*(escape(cells[heading]) for heading in kept), style=style)
    return table


def baseline_table(report: ReportData, intervals: int = 1) -> Table:
    """ΔCE of each baseline beside the SAE's; and of the first l sites together, where there are several."""
    from rich.markup import escape
    from rich.table import Table

    kinds = list(report.all_sites.baselines)
    curve = {one.site: one.delta_ce for one in report.cumulative}
    table = Table(box=_box(), header_style="bold", pad_edge=False)
    headings = ["ΔCE with", "the SAE", *(_BASELINES[kind] for kind in kinds), *(["up to here"] if curve else [])]
    for heading in headings:
        table.add_column(heading, justify="right" if table.columns else "left", no_wrap=True)
    for row in rows_of(report):
        found = [(row.baselines[kind].delta_ce, row.baselines[kind].delta_ce_ci95) for kind in kinds]
        if curve:
            here = curve.get(row.site)
            found.append((here.nats, here.ci95) if here else (None, None))
        name = "all together" if row.architecture == "joint" else row.site
        cells = [with_interval(value, interval if intervals else None) for value, interval in found]
        table.add_row(escape(name), signed(row.delta_ce.nats), *map(escape, cells))
    return table


def task_table(report: ReportData) -> Table:
    """One row per narrow task."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=_box(), header_style="bold", pad_edge=False)
    for heading in ("task", "prompts", "clean logit diff.", "right", "spliced", "right", "recovered [95 %]"):
        table.add_column(heading, justify="right" if table.columns else "left", no_wrap=True)
    for one in report.extras["tasks"]["tasks"]:
        interval = one["recovered_ci95"]
        share = percent(one["recovered"])
        share += f" [{percent(interval[0])}, {percent(interval[1])}]" if interval else ""
        clean, spliced = percent(one["clean_accuracy"]), percent(one["spliced_accuracy"])
        cells = [one["name"], str(one["prompts"]), number(one["clean"]), clean, number(one["spliced"]), spliced, share]
        table.add_row(*map(escape, cells))
    return table


def domain_table(report: ReportData, alone: bool = True) -> Table:
    """ΔCE by domain: all sites together, and each site alone if asked for and there are few."""
    from rich.markup import escape
    from rich.table import Table

    sites = report.sites if alone and 1 < len(report.sites) <= _MOST_SITE_COLUMNS else []
    table = Table(box=_box(), header_style="bold", pad_edge=False)
    for heading in ("ΔCE by domain", "tokens", "clean CE", "all [95 %]"):
        table.add_column(heading, justify="left" if heading == "ΔCE by domain" else "right", no_wrap=True)
    for site in sites:
        table.add_column(short_site(site.site), justify="right")
    for name, whole in report.all_sites.domains.items():
        cells = [
            name,
            f"{whole.tokens:,}",
            number(whole.ce.clean),
            with_interval(whole.delta_ce.nats, whole.delta_ce.ci95),
        ]
        cells += [signed(site.domains[name].delta_ce.nats) for site in sites]
        table.add_row(*map(escape, cells))
    return table


def _box() -> Any:
    from rich import box

    return box.SIMPLE_HEAD
