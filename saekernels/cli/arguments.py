"""Argument types, and a parser that says one thing when something is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except those that are nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Prints the error and where to find help, without the whole usage; exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


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


def tokens_or_all(text: str) -> int | None:
    """A positive number of tokens, or "all" (None)."""
    return None if text == "all" else at_least(1)(text)


def site_and_path(text: str) -> tuple[str, str]:
    """ "SITE=PATH" as a pair; only the first "=" parts them."""
    site, equals, path = text.partition("=")
    if not (site and equals and path):
        raise argparse.ArgumentTypeError(f"need SITE=PATH, for example model.layers.3=saes/layer_3, got {text!r}")
    return site, path
