"""What a command that takes a checkpoint is told beside its path, and what a checkpoint is, in words."""

from __future__ import annotations

import argparse
from typing import Any

from saekernels.cli.options.arguments import Parser, at_least, not_empty, positive
from saekernels.display.numbers import counted


def add_options(parser: Parser) -> None:
    """--revision, --format, --k and --input-scale."""
    told = parser.group("what the files do not say")
    told.add_argument("--revision", metavar="NAME", type=not_empty, help="of a repository on the hub (default: main)")
    which = "its name in docs/reference/formats.md, where the files fit two (default: as the files say)"
    told.add_argument("--format", metavar="NAME", type=not_empty, help=which)
    told.add_argument("--k", metavar="N", type=at_least(1), help="active latents (default: as the files say)")
    scale = "factor on inputs that the SAE was trained with (default: as the files say)"
    told.add_argument("--input-scale", metavar="S", type=positive, help=scale)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was told, as `saekernels.load` takes it."""
    names = ("revision", "format", "k", "input_scale")
    return {name: getattr(arguments, name) for name in names}


def lines(facts: dict[str, Any]) -> list[str]:
    """What `saekernels.formats.describe` found, a fact a line."""
    rows = [("format", facts["format"])]
    rows += [("file", f"{file['path']} ({_bytes(file['bytes'])})") for file in facts["files"]]
    rows += [*_function(facts), *_weights(facts), *_origin(facts)]
    rows += [("note", text) for text in facts["warnings"]]
    return [f"{name:17}{text}" for name, text in rows]


def _function(facts: dict[str, Any]) -> list[tuple[str, str]]:
    activation = facts["activation"]
    if facts["thresholds"] is not None:
        least, most = ("not finite" if end is None else f"{end:.4g}" for end in facts["thresholds"])
        activation += f", threshold {least}" if least == most else f", thresholds {least} to {most}"
    norms = (
        "pre-activations are multiplied by them, and codes divided" if facts["rescale_by_decoder_norm"] else "not used"
    )
    skip = f"W_skip [{facts['d_out']}, {facts['d_in']}]" if facts["skip"] else "none"
    return [
        ("class", facts["class"]),
        ("sizes", f"d_in {facts['d_in']:,}, d_out {facts['d_out']:,}, {counted(facts['n_latents'], 'latent')}"),
        ("activation", activation),
        ("biases", ", ".join(facts["biases"]) or "none"),
        ("pre-bias", f"{facts['pre_bias'] or 'nothing'} is subtracted from the input"),
        ("normalisation", facts["normalization"] or "none"),
        ("decoder norms", norms),
        ("skip connection", skip),
    ]


def _weights(facts: dict[str, Any]) -> list[tuple[str, str]]:
    in_file = sorted(set(facts["stored"].values()))
    stored = f" (in the file: {', '.join(in_file)})" if in_file != [facts["dtype"]] else ""
    memory, disk = _bytes(facts["memory_bytes"]), _bytes(facts["disk_bytes"])
    return [("dtype", facts["dtype"] + stored), ("memory", memory), ("disk", disk)]


def _origin(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What the files say of the model and the text; of what they do not, that they do not."""
    told = {
        "model": facts["model"],
        "site": " or ".join(facts["sites"]) or None,
        "reads": facts["reads"],
        "writes": facts["writes"],
        "head": facts["head"],
        "prepend BOS": None if facts["prepend_bos"] is None else "yes" if facts["prepend_bos"] else "no",
        "context": None if facts["context"] is None else counted(facts["context"], "token"),
        "dataset": facts["dataset"],
        "model options": _pairs(facts["model_options"]),
        "kept": _pairs(facts["other"]),
    }
    rows = [(name, "the files do not say" if value is None else str(value)) for name, value in told.items()]
    ignored = ", ".join(map(repr, facts["ignored"]))
    return [*rows, ("ignored fields", f"{ignored}: not known here, not used" if ignored else "none")]


def _pairs(values: dict[str, Any]) -> str | None:
    return ", ".join(f"{name}={value!r:.60}" for name, value in values.items()) or None


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return counted(number, "byte")
