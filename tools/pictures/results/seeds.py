"""What seeds share and what is in the error, from records of `saekernels controls`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from results.cells import layer, nats, percent, plain, table


def seeds(record: dict[str, Any]) -> Iterator[str]:
    """For each site its spread beside the interval, and for each pair of seeds what their latents share."""
    for group in record["seeds"]:
        deltas = ", ".join(nats(one["nats"]) for one in group["delta_ce"].values())
        yield f"At layer {layer(group['site'])}, {len(group['delta_ce'])} trainings that differ in the seed alone cost"
        yield f"{deltas} nats on {record['tokens']:,} tokens: range {plain(group['range'])}, standard deviation"
        yield f"{plain(group['sd'])}; one's 95 % interval over documents is {plain(group['interval_width'])} wide."
        yield ""
        off = any("off" in pair["activity"] for pair in group["pairs"])
        heads = ["seeds", "difference [95 %]", "cosine ≥ 0.7", "≥ 0.9", "pairs", "IoU", "pairs' IoU"]
        heads += ["IoU, other text", "pairs' IoU, other text"] if off else []
        yield from table(heads, (_pair(pair, off) for pair in group["pairs"]))
        yield ""
    yield "Cosine: the share of the first's latents, of those active on the text, whose nearest decoder row of the"
    yield "second is that near; pairs: latents that are each other's nearest, at 0.7 or more."
    yield "IoU: the tokens at which both are active over those at which either is, with the best of the second for each"
    yield "of the first's busiest latents; and the mean over the pairs that the decoders make."
    if any("off" in pair["activity"] for group in record["seeds"] for pair in group["pairs"]):
        yield "Other text: domains on which neither was trained."


def _pair(pair: dict[str, Any], off: bool) -> list[str]:
    decoder = pair["decoder"]["a_in_b"]["active"]
    names = " and ".join(pair[one].rpartition("#")[2] for one in ("a", "b"))
    shares = [percent(decoder["0.7"]), percent(decoder["0.9"]), f"{pair['decoder']['one_to_one']['0.7']:,}"]
    activity = [pair["activity"][text] for text in (("on", "off") if off else ("on",))]
    overlaps = ((one["iou"]["a_in_b"]["mean"], one["matched"]["iou"]) for one in activity)
    shown = (plain(value, digits=2) for value in itertools.chain.from_iterable(overlaps))
    return [names, nats(pair["b_minus_a"], pair["ci95"]), *shares, *shown]


def error(record: dict[str, Any]) -> Iterator[str]:
    """One row per SAE: what of its error is linear in its input, and the loss with each part added back."""
    measured = record["documents"]["measured"]
    yield f"On {record['tokens']:,} tokens of {measured} documents; the maps are fitted on others."
    yield ""
    heads = ["layer", "linear [95 %]", "of the norm", "ΔCE [95 %]", "+ linear [95 %]", "+ rest [95 %]", "+ both"]
    yield from table(heads, map(_error, record["sites"]))
    yield ""
    yield "Linear: the share of the error's variance that an affine map of what the SAE reads predicts; of the norm:"
    yield "the same of the error's norm."
    yield "+: ΔCE with that part of the error added to what the SAE puts in; with both the model is the clean one to"
    yield "rounding."


def _error(row: dict[str, Any]) -> list[str]:
    found, runs = row["error"], row["runs"]
    low_high = found["explained_ci95"]
    shown = percent(found["explained"]) + (f" [{percent(low_high[0])}, {percent(low_high[1])}]" if low_high else "")
    costs = [nats(runs[run]["delta_ce"], runs[run]["ci95"]) for run in ("sae", "linear", "remainder")]
    return [layer(row["site"]), shown, percent(found["norm_explained"]), *costs, nats(runs["whole"]["delta_ce"])]
