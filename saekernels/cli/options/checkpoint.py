"""What a command that takes a checkpoint is told beside its path, and what a checkpoint is, in words."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import Any

from saekernels.cli.options.arguments import Parser, at_least, not_empty, positive
from saekernels.display.numbers import counted
from saekernels.errors import InputError, first_line
from saekernels.files.checked import read_json
from saekernels.formats.candidates import ALL, form_of

# Before these options where a command has others of those names, of the model or the output.
SAES = "sae-"
_TOLD = ("revision", "format", "config", "k", "input_scale")
# "format: got 'x'"; "give k"; "say format='x'".
_REFUSED = re.compile(r"^(revision|format|config|k|input_scale)(?=: got)|(?<=; give )(k)(?=$|,)")
_ADVISED = re.compile(r"(?<= )(format|config|input_scale)=(?: |(?=['.]))")


def add_options(parser: Parser, prefix: str = "") -> None:
    """What `saekernels.load` is told beside a path, as --format, --config and so on; "sae-": of every --sae."""
    told = parser.group("what the SAEs' files do not say, of every --sae" if prefix else "what the files do not say")

    def add(name: str, metavar: str, kind: Any, what: str, default: str = "as the files say") -> None:
        told.add_argument(f"--{prefix}{name}", metavar=metavar, type=kind, help=f"{what} (default: {default})")

    add("revision", "NAME", not_empty, "of a repository on the hub", "main")
    add("format", "NAME", not_empty, f"where the files fit two, {', '.join(form.NAME for form in ALL)}")
    add("config", "FILE", not_empty, "JSON that says the maths of a plain state dict, in the fields of a cfg.json")
    add("k", "N", at_least(1), "active latents")
    add("input-scale", "S", positive, "factor on inputs that the SAE was trained with")


def asked(arguments: argparse.Namespace, prefix: str = "") -> list[str]:
    """The options of `add_options` that were given."""
    return [_option(name, prefix) for name, value in _values(arguments, prefix).items() if value is not None]


def given(arguments: argparse.Namespace, prefix: str = "") -> dict[str, Any]:
    """What was told, as `saekernels.load` takes it. InputError for a format of no such name, and for a config."""
    told = _values(arguments, prefix)
    if told["format"] is not None:
        try:
            form_of(told["format"])
        except ValueError as error:
            raise InputError(in_options(str(error), prefix)) from error
    if told["config"] is not None:
        told["config"] = _read_config(told["config"], _option("config", prefix))
    return told


def in_options(message: str, prefix: str = "") -> str:
    """What `saekernels.load` says, with the options of a command for its arguments."""
    message = _REFUSED.sub(lambda named: _option(named[0], prefix), message)
    return _ADVISED.sub(lambda named: f"{_option(named[1], prefix)} ", message)


def _values(arguments: argparse.Namespace, prefix: str) -> dict[str, Any]:
    return {name: getattr(arguments, f"{prefix}{name}".replace("-", "_")) for name in _TOLD}


def _option(name: str, prefix: str) -> str:
    return f"--{prefix}{name.replace('_', '-')}"


def _read_config(path: str, option: str) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{option}: cannot read {path}: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"{option}: {path} needs an object of fields, got {textwrap.shorten(repr(found), 60)}")
    return found


def lines(facts: dict[str, Any]) -> list[str]:
    """What `saekernels.formats.describe` found, a fact a line."""
    rows = [("format", facts["format"])]
    rows += [("file", f"{file['path']} ({_bytes(file['bytes'])})") for file in facts["files"]]
    rows += [*_function(facts), *_weights(facts), *_origin(facts)]
    rows += [("note", text) for text in facts["warnings"]]
    return [f"{name:17}{text}" for name, text in rows]


def layer_lines(facts: dict[str, Any]) -> list[str]:
    """What `describe_cross_layer` found of a dictionary that spans layers, a fact a line."""
    files, sizes = facts["files"], facts["n_latents"]
    same = len(set(sizes)) == 1
    each = f"{counted(sizes[0], 'latent')} each" if same else f"{', '.join(f'{n:,}' for n in sizes)} latents"
    kinds = list(dict.fromkeys(facts["activation"]))
    whole = facts["memory_bytes"] + facts["mapped_bytes"]
    mapped = f"{_bytes(facts['mapped_bytes'])} of them stay in their files, mapped" if facts["mapped_bytes"] else "held"
    told = {
        "class": facts["class"],
        "sizes": f"{counted(facts['layers'], 'layer')}, d_in {facts['d_in']:,}, d_out {facts['d_out']:,}, {each}",
        "activation": ", ".join(kinds),
        "decoder norms": "codes are weighted by them" if facts["rescale_by_decoder_norm"] else "not used",
        "skip connection": "in each layer" if facts["skip"] else "none",
        "parameters": f"{facts['parameters']:,} of {facts['dtype']}",
        "encoders": f"{_bytes(facts['encoder_bytes'])}, held",
        "decoders": f"{_bytes(facts['decoder_bytes'])}, {mapped}",
        "memory": f"{_bytes(facts['memory_bytes'])}, with lazy=False {_bytes(whole)}",
        "disk": _bytes(facts["disk_bytes"]),
        "model": facts["model"],
        "first site": facts["sites"] and facts["sites"][0],
        "last site": facts["sites"] and facts["sites"][-1],
        "kept": _pairs(facts["other"]),
    }
    shown = f"{files[0]['path']} ({_bytes(files[0]['bytes'])})" + (f" and {len(files) - 1} more" if files[1:] else "")
    rows = [("format", facts["format"]), ("files", shown)]
    rows += [(name, "the files do not say" if value is None else str(value)) for name, value in told.items()]
    ignored = ", ".join(map(repr, facts["ignored"]))
    rows.append(("ignored fields", f"{ignored}: not known here, not used" if ignored else "none"))
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
