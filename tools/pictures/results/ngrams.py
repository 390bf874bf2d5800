"""The loss beside far simpler models', from the record of `tools/real_model/ngrams.py` and the report beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from results.cells import layer, nats, table

NAMES = {0: "all tokens alike", 1: "frequencies", 2: "2-grams", 3: "3-grams", 4: "4-grams"}


def ngrams(record: dict[str, Any], report: dict[str, Any]) -> Iterator[str]:
    """One row per order: its size and loss, by how much the spliced model's is larger, and from which layer on."""
    losses = report["all_sites"]["ce"]
    yield f"Models that only count the {record['train_tokens']:,} tokens from which the SAEs' were drawn predict"
    yield f"the same {record['tokens']:,} tokens; they, too, see only what stands before one in its window."
    yield f"The model itself has {losses['clean']:.3f} nats, with all SAEs {losses['spliced']:.3f}."
    yield ""
    heads = ["predicts by", "n-grams", "nats a token", "all SAEs lose more by [95 %]", "SAEs up to here lose more"]
    rows = []
    for model in record["models"]:
        joint = nats(model["all_minus"]["value"], model["all_minus"]["ci95"])
        size = f"{model['ngrams']:,}" if model["order"] else "–"
        rows.append([NAMES[model["order"]], size, f"{model['loss']:.3f}", joint, _from(report, model["loss"])])
    yield from table(heads, rows)
    yield ""
    yield "N-grams: those counted of the longest kind; interpolated modified Kneser-Ney."
    yield "Intervals are paired by document."
    yield "The last column: the first layer from which on, with SAEs there and at all layers before, the model predicts"
    yield "worse than that."


def _from(report: dict[str, Any], loss: float) -> str:
    """The first layer from which on the cumulative splice's loss is above `loss`."""
    above = [step["ce"] > loss for step in report["cumulative"]]
    if not above or not above[-1]:
        return "–"
    kept = len(above) - 1 - above[::-1].index(False) if False in above else -1
    return layer(report["cumulative"][kept + 1]["site"])
