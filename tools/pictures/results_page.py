"""docs/results.md: what splicing all layers of a real model costs, every figure from the committed records."""

from __future__ import annotations

import re
import shlex
import statistics
import textwrap
from collections.abc import Iterator
from typing import Any

_SAES = re.compile(r"--sae( model\.layers\.\d+=\S+)+")
_SHORT = "--sae saes/model.layers.*"  # their files say the site
_OPTIONS = ("model", "data", "tokens", "sites", "latents", "k", "leave_first", "leave_norm", "dtype", "out")


def results_page(report: dict[str, Any], training: dict[str, Any], source: str) -> str:
    """The page of a report (schema 1) and of the record of the training of its SAEs; source: the report's path."""
    lines = [
        "# What splicing all layers of SmolLM2-135M costs",
        "",
        *_answer(report),
        "",
        "<picture>",
        '  <source media="(prefers-color-scheme: dark)" srcset="images/sites-dark.svg">',
        '  <img src="images/sites-light.svg" alt="What each layer costs alone, and with all layers before it">',
        "</picture>",
        "",
        "## Every layer",
        "",
        *_sites(report),
        "",
        "## Every domain",
        "",
        *_domains(report),
        "",
        "## What was run",
        "",
        *_circumstances(report, training, source),
    ]
    return "\n".join(lines) + "\n"


def _nats(cost: dict[str, Any], digits: int = 3) -> str:
    if cost["ci95"] is None:
        return f"{cost['nats']:+.{digits}f}"
    low, high = cost["ci95"]
    return f"{cost['nats']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _answer(report: dict[str, Any]) -> Iterator[str]:
    together = report["all_sites"]
    alone = [row["delta_ce"]["nats"] for row in report["sites"]]
    count, bits = len(report["sites"]), together["delta_ce"]["bits_per_byte"]
    yield f"**SAEs in place of the residual stream after all {count} layers cost {_nats(together['delta_ce'])} nats a"
    yield f"token ({bits:+.3f} bits a byte), where each of them alone costs {min(alone):+.3f} to {max(alone):+.3f},"
    yield f"{statistics.median(alone):+.3f} in the median.**"
    losses = together["ce"]
    yield f"The loss rises from {losses['clean']:.3f} to {losses['spliced']:.3f} nats, and the likeliest token"
    yield f"stays the same at {100 * together['top1_agreement']:.1f} % of the positions."
    yield f"The {count} costs alone add up to {sum(alone):+.3f} nats."


def _sites(report: dict[str, Any]) -> Iterator[str]:
    kinds = [kind for kind in ("pca", "random", "mean", "zero") if kind in report["all_sites"]["baselines"]]
    names = {"pca": "PCA", "random": "random", "mean": "mean", "zero": "zero"}
    heads = ["layer", "ΔCE alone [95 %]", "KL", "top-1", "L0", "FVU", "dead"]
    heads += [*(names[kind] for kind in kinds), "ΔCE up to it [95 %]"]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    upto = [_nats(step["delta_ce"]) for step in report["cumulative"]]
    rows = report["sites"]
    for row, curve in zip(rows, upto or [""] * len(rows), strict=True):
        yield _row(row["site"].rpartition(".")[2], row, kinds, curve)
    yield _row("all", report["all_sites"], kinds, "")
    yield ""
    yield "ΔCE in nats per token; L0: active latents per token; FVU: the variance left unexplained, while spliced;"
    yield "dead: the share of the latents that were never active."
    if kinds:
        yield "What stands beside the SAE at the same positions: a probe of as many principal components as the SAE has"
        yield "active latents, errors of the SAE's size in random directions, the mean activation, and zeros."


def _row(name: str, row: dict[str, Any], kinds: list[str], curve: str) -> str:
    baselines = [f"{row['baselines'][kind]['delta_ce']:+.3f}" for kind in kinds]
    cells = [
        name,
        _nats(row["delta_ce"]),
        f"{row['kl']:.3f}",
        f"{100 * row['top1_agreement']:.1f} %",
        f"{row['l0']:.0f}",
        f"{row['fvu']:.3f}",
        f"{100 * row['dead_fraction']:.0f} %",
        *baselines,
        curve,
    ]
    return "| " + " | ".join(cells) + " |"


def _domains(report: dict[str, Any]) -> Iterator[str]:
    yield "| domain | tokens | documents | clean CE | all together, ΔCE [95 %] | one layer alone, median |"
    yield "|---|---|---|---|---|---|"
    for name, part in report["all_sites"]["domains"].items():
        alone = statistics.median(row["domains"][name]["delta_ce"]["nats"] for row in report["sites"])
        cells = [
            name,
            f"{part['tokens']:,}",
            str(part["documents"]),
            f"{part['ce']['clean']:.3f}",
            _nats(part["delta_ce"]),
            f"{alone:+.3f}",
        ]
        yield "| " + " | ".join(cells) + " |"


def _circumstances(report: dict[str, Any], training: dict[str, Any], source: str) -> Iterator[str]:
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
    yield from _wrapped(_training_command(options))
    yield from _wrapped(_SAES.sub(_SHORT, run["command"]))
    yield "```"
    yield ""
    yield f"The record is `{source}`;"
    yield "`python tools/pictures` makes this page and its picture of it."


def _training_command(options: dict[str, Any]) -> str:
    parts = ["python", "examples/train_saes.py"]
    for name in _OPTIONS:
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
