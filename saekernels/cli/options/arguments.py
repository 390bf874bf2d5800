"""Argument types, and a parser that says one thing when something is wrong."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from saekernels.cli.options.output import show


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except those that are nothing, and that a switch is off."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Prints the error and where to find help, without the whole usage; exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, "allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Nothing may stay unknown: a subcommand's parser says so itself, and points to its own help."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and version go to stdout, where argparse would ignore that they do not arrive."""
        if message and file in (None, sys.stdout):
            show(message)
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def not_empty(text: str) -> str:
    """A path or a name."""
    if not text:
        raise argparse.ArgumentTypeError("need a path or a name, got ''")
    return text


def at_least(least: int) -> Callable[[str], int]:
    """An integer not below `least`."""

    def whole_number(text: str) -> int:
        try:
            value = int(text.replace("_", "").replace(",", ""))
        except ValueError:
            raise argparse.ArgumentTypeError(f"need a whole number, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"need at least {least}, got {text}")
        return value

    return whole_number


def count(text: str) -> int:
    """A whole number, also as 16e6."""
    try:
        value = float(text.replace("_", "").replace(",", ""))
        found = int(value) if value == int(value) else -1
    except (ValueError, OverflowError):
        found = -1
    if found < 0 or found > 10**18:
        raise argparse.ArgumentTypeError(f"need a whole number such as 16e6, got {text!r}")
    return found


def tokens_or_all(text: str) -> int | None:
    """A positive number of tokens, or "all" (None)."""
    return None if text == "all" else at_least(1)(text)


def names_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Names from `known`, comma-separated; "none" for none of them."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(part.strip() for part in text.split(",")) if text != "none" else ()
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"need some of {', '.join(known)} (or none), got {name!r}")
        return found

    return names


def site_and_path(text: str) -> tuple[str, str]:
    """ "SITE=PATH" as a pair; only the first "=" parts them."""
    site, equals, path = text.partition("=")
    if not (site and equals and path):
        raise argparse.ArgumentTypeError(f"need SITE=PATH, for example model.layers.3=saes/layer_3, got {text!r}")
    return site, path


def positive(text: str, of: str = "") -> float:
    """A positive finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"need a positive number{of}, got {text!r}")
    return value


def seconds(text: str) -> float:
    """A positive finite number of seconds."""
    return positive(text, " of seconds")
