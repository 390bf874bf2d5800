"""What it cost to train and to measure, from the records themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from results.cells import NONE, table


def spent(records: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """One row per record that says how many runs it took; and those runs beside the model's own forward passes."""
    rows = []
    for name, record in records.items():
        run = record.get("run", {})
        if "passes" not in run:
            continue
        seconds, runs, tokens = run.get("seconds"), run["passes"], record["tokens"]
        times = [NONE, NONE]
        if seconds is not None:
            times = [f"{seconds / 60:.0f}", f"{1e6 * seconds / (runs * tokens):.0f}"]
        rows.append([f"`{name}.json`", f"{tokens:,}", str(runs), *times])
    yield from table(["record", "tokens", "runs over them", "minutes", "μs a token and run"], rows)
    yield ""
    yield "A run begins at its first site and ends with the loss. Of `controls`, tokens are the half that is measured."
    for name, record in records.items():
        if name.startswith("floor"):
            yield from _floor(record)
    for name, record in records.items():
        if name.startswith("train"):
            yield _training(name, record)


def _floor(record: dict[str, Any]) -> Iterator[str]:
    yield f"In one process and in turns, over {record['tokens']:,} tokens, the own forward of"
    sites = len(record["sites"])
    yield f"{record['model'].rpartition('/')[2]} took {record['forward_seconds']:.1f} s, and an evaluation at"
    yield f"{sites} sites, {record['passes']} runs,"
    yield f"{record['evaluate_seconds']:.1f} s: {record['ratio']:.2f} times as long as that many forwards"
    yield f"(median of {record['rounds']} rounds; each {', '.join(f'{one:.2f}' for one in record['ratios'])})."


def _training(name: str, record: dict[str, Any]) -> str:
    summary = record["summary"]
    share = f"{100 * summary['share_of_model_forward']:.0f} %"
    return (
        f"`{name}.json`: {len(summary['fvu'])} trained in one pass, {summary['tokens']:,} tokens each, in "
        f"{summary['seconds'] / 60:.0f} minutes, {share} of the computing the model's."
    )
