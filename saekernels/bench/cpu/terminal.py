"""The record in a terminal: one table per op, ours first, and a summary against the baselines."""

from __future__ import annotations

from saekernels.bench.cpu.record import Record, Row, Verdict
from saekernels.bench.ops.table import OPS
from saekernels.display.tables import strong, text_table, wrapped

HEADINGS = (
    "contender", "median ms", "IQR ms", "rounds", "ours faster by", "paired",
    "peak MiB", "M instr", "GB/s", "GFLOP/s", "of bound", "fp32/bf16/int8/read %",
)  # fmt: skip
_LEGEND = (
    "ours faster by: its median over that of saekernels (below 1, ours is slower); paired: median of the ratios within "
    "each round; peak MiB: memory beyond the inputs; M instr: millions of instructions of one call, where the system "
    "counts them; GB/s, GFLOP/s: the least work of the op over the median; of bound: the share of what this machine's "
    "ceilings allow; fp32/bf16/int8/read: of each ceiling alone; IQR: interquartile range"
)


def record_text(record: Record) -> str:
    """The machine, the tables and the summary."""
    tables = [case_table(case, rows) for op in OPS for case, rows in record.by_case().items() if case[0] == op]
    verdicts = "\n".join(verdict_line(verdict) for verdict in record.verdicts())
    summary = f"{strong('Ours against the fastest baseline (paired ratio):')}\n{wrapped(verdicts)}\n"
    return "\n".join([wrapped("\n".join(heading(record))) + "\n", *tables, wrapped(_LEGEND) + "\n", summary])


def heading(record: Record) -> list[str]:
    """Where this was measured, and its ceilings."""
    machine, roofs = record.machine, record.roofs
    commit = "no checkout" if record.commit is None else record.commit[:12] + (" and changes" if record.dirty else "")
    return [
        f"saekernels {record.versions['saekernels']} ({commit}), torch {record.versions['torch']}, {record.date}",
        f"{machine['model']} ({', '.join(machine['flags']) or 'no flags known'}), {machine['threads']} threads, "
        f"backend {machine['backend']}, SIMD {machine['simd_level'] or '-'}, screening {machine['screening'] or '-'}",
        f"ceilings: {roofs.float32_gflops:.0f} GFLOP/s float32, {roofs.bfloat16_gflops:.0f} GFLOP/s bfloat16, "
        f"{'unknown' if roofs.int8_gops is None else f'{roofs.int8_gops:.0f}'} GOP/s int8, "
        f"copy {roofs.copy_gbs:.1f} GB/s, read {roofs.read_gbs:.1f} GB/s",
    ]


def case_table(case: tuple[str, str, str], rows: list[Row]) -> str:
    """One case: a row per contender, and below it why others have none."""
    op, dtype, shape = case
    timed = [cells(row) for row in rows if row.median_ms is not None]
    others = "\n".join(f"{_contender(row)}: {row.status}" for row in rows if row.median_ms is None)
    title = f"{op} {shape} {dtype}"
    return text_table(HEADINGS, timed, before=title, after=others) if timed else f"{strong(title)}\n{wrapped(others)}\n"


def cells(row: Row) -> list[str]:
    """Under HEADINGS, of a row with figures."""
    return [
        _contender(row),
        _figure(row.median_ms),
        _figure(row.iqr_ms),
        str(row.rounds),
        _times(row.ratio_to_ours),
        _times(row.paired_ratio_to_ours),
        _figure(row.peak_mib),
        _figure(None if row.instructions is None else row.instructions / 1e6),
        _figure(row.gb_per_s),
        _figure(row.gflop_per_s),
        "-" if row.share_of_bound is None else f"{100 * row.share_of_bound:.0f}%",
        "/".join(map(_percent, (row.share_of_float32, row.share_of_bfloat16, row.share_of_int8, row.share_of_read))),
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"


def _contender(row: Row) -> str:
    return row.contender + (f" ({row.detail})" if row.detail else "")


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
