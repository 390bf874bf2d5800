"""docs/results.md: what splicing all layers of a real model costs, every figure from the committed records."""

from __future__ import annotations

import re
import shlex
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from results.baselines import baselines, more_text
from results.cells import cost, layer, percent, plain, table
from results.curve import curve
from results.ngrams import ngrams
from results.precision import precision
from results.seeds import error, seeds
from results.spent import spent
from results.strata import domains, strata
from results.transcoders import transcoders
from results.untrained import untrained
from results.uses import probes, tasks

_SAES = re.compile(r"--sae( (model\.layers\.\d+)=saes/\2)+(?= )")
_ALL = "--sae saes/model.layers.*"  # their files say the site
RECORDS = (
    "sites", "ngrams", "head50k", "baselines", "curve", "controls", "shuffled", "seeds", "error", "tasks", "probe",
    "transcoders", "bfloat16", "floor", "floor-sweep", "floor-example", "train", "train-curve", "train-controls",
    "train-activations", "train-transcoders",
)  # fmt: skip
"""What the page can be made of; docs/how-to/real_model.md has the command of each."""
_OPTIONS = ("model", "data", "tokens", "sites", "latents", "k", "leave_first", "leave_norm", "dtype", "out")
_VARIED = {"activation": "topk", "freeze": "none", "decoder": "random", "seeds": [0]}  # shown where they differ


def results_page(records: Mapping[str, dict[str, Any]], folder: str) -> str:
    """The page of the records by name: "sites" (a report, schema 1) and "train", and what else there is of RECORDS.

    folder: where the records lie, as the page names it.
    """
    report = records["sites"]
    lines = [
        "# What splicing all layers of SmolLM2-135M costs",
        "",
        *_answer(report, records.get("ngrams"), records.get("baselines")),
        "",
        "<picture>",
        '  <source media="(prefers-color-scheme: dark)" srcset="images/sites-dark.svg">',
        '  <img src="images/sites-light.svg" alt="What each layer costs alone, and with all layers before it">',
        "</picture>",
    ]
    for heading, section in _sections(records):
        lines += ["", f"## {heading}", "", *section]
    lines += ["", "## What was run", "", *_circumstances(records, folder)]
    return "\n".join(lines) + "\n"


def _sections(records: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, Iterable[str]]]:
    """Headings and lines, each where its record is there."""

    def present(*names: str) -> list[dict[str, Any]]:
        return [records[name] for name in names if name in records]

    report = records["sites"]
    yield "Every layer", _sites(report)
    if found := present("ngrams"):
        yield "Beside models that only count", ngrams(*found, report)
    if found := present("head50k"):
        yield "More text", more_text(*found, report)
    if found := present("baselines"):
        yield "What else could stand there", baselines(*found)
    yield "Every domain", domains(report)
    yield "Where in the text", strata(report)
    if found := present("curve"):
        yield "More latents, and the bits that they take", curve(*found)
    if found := present("controls", "shuffled"):
        yield "Parts that never learned", untrained(*found, beside=report)
    if found := present("seeds"):
        yield "Seeds", seeds(*found)
    if found := present("error"):
        yield "What is in the error", error(*found)
    if found := [one for one in present("baselines", "tasks") if "tasks" in one["extras"]]:
        yield "Narrow tasks beside the whole", tasks(*found)
    if found := present("probe"):
        yield "Probes", probes(*found, report)
    if found := present("transcoders"):
        yield "Transcoders", transcoders(*found)
    if found := present("bfloat16"):
        yield "In bfloat16", precision(*found, report, records.get("floor"))
    yield "What it cost to measure", spent(records)


def _answer(report: dict[str, Any], counted: dict[str, Any] | None, beside: dict[str, Any] | None) -> Iterator[str]:
    together = report["all_sites"]
    alone = [row["delta_ce"]["nats"] for row in report["sites"]]
    count, bits = len(report["sites"]), together["delta_ce"]["bits_per_byte"]
    yield f"**SAEs in place of the residual stream after all {count} layers cost {cost(together['delta_ce'])} nats a"
    yield f"token ({bits:+.3f} bits a byte), where each of them alone costs {min(alone):+.3f} to {max(alone):+.3f},"
    yield f"{statistics.median(alone):+.3f} in the median.**"
    losses = together["ce"]
    yield f"The loss rises from {losses['clean']:.3f} to {losses['spliced']:.3f} nats, and the likeliest token"
    yield f"stays the same at {100 * together['top1_agreement']:.1f} % of the positions."
    if counted is not None:
        alike, frequencies = (model["loss"] for model in counted["models"][:2])
        yield f"A guess that takes all tokens to be alike has {alike:.3f} nats, one by frequencies {frequencies:.3f}."
    yield f"The {count} costs alone add up to {sum(alone):+.3f} nats."
    if beside is not None:
        found = beside["all_sites"]["baselines"]
        costs = {kind: f"{found[kind]['delta_ce']:+.3f}" for kind in ("mean", "pca", "random")}
        yield f"At all {count} layers at once the mean activation costs {costs['mean']} nats, PCA of the SAEs' rank"
        yield f"{costs['pca']}, errors as large as the SAEs' in random directions {costs['random']}."


def _sites(report: dict[str, Any]) -> Iterator[str]:
    heads = ["layer", "ΔCE alone [95 %]", "KL", "top-1", "L0", "FVU", "dead", "ΔCE up to it [95 %]"]
    upto = [cost(step["delta_ce"]) for step in report["cumulative"]]
    rows = [*report["sites"], report["all_sites"]]
    yield from table(heads, map(_row, rows, [*(upto or [""] * len(report["sites"])), ""]))
    yield ""
    yield "ΔCE in nats per token; L0: active latents per token; FVU: the variance left unexplained, while spliced;"
    yield "dead: the share of the latents that were never active."


def _row(row: dict[str, Any], upto: str) -> list[str]:
    return [
        layer(row["site"]),
        cost(row["delta_ce"]),
        plain(row["kl"]),
        percent(row["top1_agreement"]),
        plain(row["l0"], digits=0),
        plain(row["fvu"]),
        percent(row["dead_fraction"], 0),
        upto,
    ]


def _circumstances(records: Mapping[str, dict[str, Any]], folder: str) -> Iterator[str]:
    report, training = records["sites"], records["train"]
    run, options, summary = report["run"], training["options"], training["summary"]
    yield "SmolLM2-135M-Instruct, from 4-bit weights (Q4_1) that were dequantised to float32"
    yield "([how to get it and the text](how-to/real_model.md)): not the weights that were published."
    text = f"{report['tokens']:,} tokens of {report['documents']} held-out documents"
    yield f"{text}, in windows of {report['context']} tokens."
    for sentence in report["mask"].replace(". ", ".\n").split("\n"):
        yield from textwrap.wrap(sentence, 116)
    shares = [one["left"] / one["positions"] for one in run.get("left", {}).values()]
    if shares:
        yield f"The norm left {100 * max(shares):.2f} % of the positions of a site at most."
    yield ""
    yield f"The SAEs: {options['activation']}, k = {options['k']}, {options['latents']:,} latents,"
    yield f"{summary['tokens']:,} tokens each at all sites in one pass, with the model in {options['dtype']}: a small"
    yield "budget, so another trainer's SAEs may cost less. Nothing here says what the best SAE could do."
    yield f"Training took {summary['seconds'] / 60:.0f} minutes, the evaluation {run['seconds'] / 60:.0f} minutes in"
    yield f"{run['dtype']} on {run['device']}: {run['passes']} runs over the text, each from its first site on."
    yield ""
    yield "```bash"
    yield "python tools/real_model --work ."
    for name, record in records.items():
        if name.startswith("train"):
            yield from _wrapped(_training_command(record["options"]))
    for record in records.values():
        command = record.get("command") or record.get("run", {}).get("command")
        if command:
            yield from _wrapped(_SAES.sub(lambda found: _short(found[0], len(report["sites"])), command))
    yield "```"
    yield ""
    yield f"The records are in `{folder}`;"
    yield "`python tools/pictures` makes this page and its picture of them."


def _short(option: str, sites: int) -> str:
    """The option --sae of plain sites, in few words where it names all of them."""
    return _ALL if option.count("=") == sites else option


def _training_command(options: dict[str, Any]) -> str:
    parts = ["python", "examples/train_saes.py"]
    for name in (*_OPTIONS, *(name for name, usual in _VARIED.items() if options[name] != usual)):
        value = options[name]
        words = value if isinstance(value, list) else [value]
        parts += [
            f"--{name.replace('_', '-')}",
            *(f"{word:g}" if isinstance(word, float) else str(word) for word in words),
        ]
    return shlex.join(parts)


def _wrapped(command: str) -> list[str]:
    """The command on lines of at most 116 columns, which a shell reads as one."""
    lines = textwrap.wrap(command, 112, break_long_words=False, break_on_hyphens=False, subsequent_indent="    ")
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
