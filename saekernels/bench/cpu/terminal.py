"""The record in a terminal: one table per op, ours first, and a summary against the baselines. Needs rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saekernels.bench.cpu.record import Record, Row, Verdict
from saekernels.bench.ops.table import OPS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADINGS = (
    "contender", "median ms", "IQR ms", "rounds", "ours faster by", "paired",
    "peak MiB", "GB/s", "GFLOP/s", "of bound",
)  # fmt: skip
_WIDTH = 150
_TEXT_WIDTH = 120
_LEGEND = (
    "ours faster by: its median over that of saekernels (below 1, ours is slower); paired: median of the ratios within "
    "each round; peak MiB: memory beyond the inputs; GB/s, GFLOP/s: the least work of the op over the median; of "
    "bound: the share of what this machine's ceilings allow"
)


def print_record(record: Record, console: Console | None = None) -> None:
    """Print the machine, the tables and the summary."""
    from rich.console import Console

    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    for line in heading(record):
        console.print(line, markup=False)
    for op in OPS:
        if any(row.op == op for row in record.rows):
            console.print(op_table(record, op))
    console.print(_LEGEND, width=_TEXT_WIDTH)
    console.print("Ours against the fastest baseline (paired ratio):", style="bold")
    for verdict in record.verdicts():
        console.print("  " + verdict_line(verdict), markup=False)


def heading(record: Record) -> list[str]:
    """Where this was measured, and its ceilings."""
    machine, roofs = record.machine, record.roofs
    commit = "no checkout" if record.commit is None else record.commit[:12] + (" and changes" if record.dirty else "")
    return [
        f"saekernels {record.versions['saekernels']} ({commit}), torch {record.versions['torch']}, {record.date}",
        f"{machine['model']} ({', '.join(machine['flags']) or 'no flags known'}), {machine['threads']} threads, "
        f"backend {machine['backend']}, SIMD {machine['simd_level'] or '-'}, screening {machine['screening'] or '-'}",
        f"ceilings: {roofs.float32_gflops:.0f} GFLOP/s float32, {roofs.bfloat16_gflops:.0f} GFLOP/s bfloat16, "
        f"copy {roofs.copy_gbs:.1f} GB/s, read {roofs.read_gbs:.1f} GB/s",
    ]


def op_table(record: Record, op: str) -> Table:
    """All cases of an op, each under a line with its shape."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"[bold]{op}[/bold]", title_style="", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for name in HEADINGS:
        table.add_column(name, justify="left" if name == "contender" else "right", no_wrap=name != "contender")
    for case, rows in record.by_case().items():
        if case[0] != op:
            continue
        table.add_row(f"[bold]{case[2]} {case[1]}[/bold]")
        for number, row in enumerate(rows):
            table.add_row(*map(escape, cells(row)), end_section=number == len(rows) - 1)
    return table


def cells(row: Row) -> list[str]:
    """Under HEADINGS; a row without figures says why instead."""
    name = f"  {row.contender}" + (f" ({row.detail})" if row.detail else "")
    if row.median_ms is None:
        return [f"{name}: {row.status}"]
    return [
        name,
        _figure(row.median_ms),
        _figure(row.iqr_ms),
        str(row.rounds),
        _times(row.ratio_to_ours),
        _times(row.paired_ratio_to_ours),
        _figure(row.peak_mib),
        _figure(row.gb_per_s),
        _figure(row.gflop_per_s),
        "-" if row.share_of_bound is None else f"{100 * row.share_of_bound:.0f}%",
    ]


def verdict_line(verdict: Verdict) -> str:
    """ "encode float32 T=1 d=768 F=24576 k=32: 1.20x faster than torch, chunked"."""
    op, dtype, shape = verdict.case
    case = f"{op} {dtype} {shape}"
    if verdict.ratio is None:
        return f"{case}: not compared with {verdict.baseline}"
    if verdict.ratio >= 1:
        return f"{case}: {verdict.ratio:.2f}x faster than {verdict.baseline}"
    return f"{case}: SLOWER than {verdict.baseline}, which takes {verdict.ratio:.2f} of our time"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _figure(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
