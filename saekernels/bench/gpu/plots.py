"""Plots of a record: ours and the baselines at every size of an op. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from saekernels.bench.cpu.record import Row, shape_text
from saekernels.bench.gpu.record import Record


def draw(made: Record, beside: Path) -> list[Path]:
    """One SVG per op, beside the record; none where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return []
    written = []
    for op in dict.fromkeys(row.op for row in made.rows):
        rows = [row for row in made.rows if row.op == op and row.median_ms is not None]
        if not rows:
            continue
        figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
        _bars(axes, rows)
        axes.set_title(f"{op} on {made.hardware['gpu']}, {made.date[:10]}, commit {(made.commit or 'none')[:7]}")
        path = beside.with_name(f"{beside.stem}-{op}.svg")
        figure.savefig(path)
        plt.close(figure)
        written.append(path)
    return written


def _bars(axes: object, rows: list[Row]) -> None:
    """Groups of bars by case: time over ours, on a logarithmic axis."""
    cases = list(dict.fromkeys((row.dtype, shape_text(row.shape)) for row in rows))
    contenders = list(dict.fromkeys(row.contender for row in rows))
    width = 0.8 / len(contenders)
    for number, contender in enumerate(contenders):
        mine = [row for row in rows if row.contender == contender]
        places = [cases.index((row.dtype, shape_text(row.shape))) + number * width for row in mine]
        axes.bar(places, [row.median_ms for row in mine], width, label=contender)  # type: ignore[attr-defined]
    axes.set_yscale("log")  # type: ignore[attr-defined]
    axes.set_ylabel("milliseconds")  # type: ignore[attr-defined]
    labels = [f"{dtype}\n{shape}".replace(" d=", "\nd=") for dtype, shape in cases]
    axes.set_xticks([place + 0.4 for place in range(len(cases))], labels, fontsize=6)  # type: ignore[attr-defined]
    axes.legend(fontsize=7)  # type: ignore[attr-defined]
