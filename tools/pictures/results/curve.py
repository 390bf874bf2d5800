"""The loss beside L0 and description length, from a record of `saekernels controls --parts bits`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from results.cells import layer, nats, percent, plain, table


def curve(record: dict[str, Any]) -> Iterator[str]:
    """One row per SAE: its latents per token, its bits, its loss, and the same of PCA of its rank."""
    measured = record["documents"]["measured"]
    yield f"On {record['tokens']:,} tokens of {measured} documents; probes and steps are fitted on others."
    yield ""
    family = any(row["worth"] for row in record["sites"])
    heads = ["layer", "L0", "FVU", "ΔCE [95 %]", "bits", "ΔCE at these", "PCA: rank", "bits", "ΔCE [95 %]"]
    yield from table([*heads, "of training"] if family else heads, (_row(row, family) for row in record["sites"]))
    yield ""
    yield "Bits per token: which latents are active and their values, quantised until the squared error rises by"
    yield f"{percent(record['rise'], 0)}; of PCA its coefficients, by the same rule. ΔCE in nats per token."
    if family:
        yield "Of training: the share of the training compute of a smaller model of one family that predicts as well."
    else:
        yield "No smaller model of this family was measured on this text; models that only count have a section above."


def _row(row: dict[str, Any], family: bool) -> list[str]:
    runs, sae, pca = row["runs"], row["bits"]["sae"], row["bits"]["pca"]
    cells = [layer(row["site"]), plain(row["l0"], digits=0), plain(row["fvu"])]
    cells += [nats(runs["sae"]["delta_ce"], runs["sae"]["ci95"])]
    cells += [plain(sae["bits"]["total"], digits=0), nats(runs["quantised"]["delta_ce"])]
    cells += [str(pca["numbers"]), plain(pca["bits"]["total"], digits=0)]
    cells += [nats(runs["pca"]["delta_ce"], runs["pca"]["ci95"])]
    if family:
        worth = row["worth"].get("sae")
        cells.append(percent(worth["share"]) if worth and not worth["outside"] else (worth or {}).get("outside", "–"))
    return cells
