"""Argument types, and a parser that says one thing when something is wrong."""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Container, Sequence
from typing import Any, NoReturn

from saekernels.cli.options.output import show

WIDTH = 100
# Arguments of functions whose values come by options of other names.
_COME_BY = {
    "documents": ("--data",),
    "edits": ("--edit",),
    "off": ("--off-data",),
    "replacement": ("--clt", "--crosscoder", "--transcoders"),
    "saes": ("--sae",),
    "sites": ("--sae",),
    "watches": ("--watch", "--stop"),
}
_ARGUMENT = re.compile(r"([a-z][a-z_]*)(?=: | must be )")


class HelpFormatter(argparse.HelpFormatter):
    """Tells every default once, as one would type it; leaves what is nothing or a switch, and lines that are set."""

    def __init__(self, prog: str, width: int | None = None, **options: Any) -> None:
        columns = shutil.get_terminal_size().columns - 2 if width is None else width
        super().__init__(prog, width=min(columns, WIDTH), **options)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = typed(action.default)
        if action.help is None or default is None or not action.option_strings or "(default: " in action.help:
            return action.help
        return f"{action.help} (default: {default.replace('%', '%%')})"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """ "FILE ..." where argparse says "FILE [FILE ...]"."""
        if action.nargs != argparse.ONE_OR_MORE:
            return super()._format_args(action, default_metavar)
        return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def typed(default: Any) -> str | None:
    """A default as it would be typed; None for no default and for a switch."""
    if default is None or isinstance(default, bool) or default in ((), [], argparse.SUPPRESS):
        return None
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    if isinstance(default, list):
        return " ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


class Parser(argparse.ArgumentParser):
    """Prints the error and where to find help, without the whole usage; exit code 2.

    examples: command lines at the end of the page, each with what it does or "". What is listed of options stands in
    groups; none is without.
    """

    def __init__(self, *, examples: Sequence[tuple[str, str]] = (), **options: Any) -> None:
        width = max((len(line) for line, what in examples if what), default=0)
        lines = [f"  {line:{width}}  # {what}" if what else f"  {line}" for line, what in examples]
        if lines:
            options["epilog"] = "\n".join(["example:" if len(lines) == 1 else "examples:", *lines])
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **options})
        self.examples = [line for line, _ in examples]
        self._titled: dict[str, argparse._ArgumentGroup] = {}
        self._optionals.title = "help"

    def group(self, title: str) -> argparse._ArgumentGroup:
        """The group of options with this title; its place on the page is that of its first use."""
        if title not in self._titled:
            self._titled[title] = self.add_argument_group(title)
        return self._titled[title]

    def add_family(
        self, title: str, commands: argparse._SubParsersAction[Parser], adders: Sequence[Callable[[Any], None]]
    ) -> None:
        """List the commands that `adders` add to `commands` under a title of their own."""
        before = len(commands._choices_actions)
        for add in adders:
            add(commands)
        self.group(title)._group_actions.extend(commands._choices_actions[before:])

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Nothing may stay unknown: a subcommand's parser says so itself, and points to its own help."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def option_strings(self) -> frozenset[str]:
        """--help and all other options, however they are spelt."""
        return frozenset(self._option_string_actions)

    def tell_options(self) -> None:
        """Each subcommand's namespace says under `options` which ones the subcommand has."""
        for action in self._actions:
            for command in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
                command.set_defaults(options=command.option_strings())
                command.tell_options()

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and version go to stdout, where argparse would ignore that they do not arrive."""
        if message and file in (None, sys.stdout):
            show(message)
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def as_typed(message: str, known: Container[str], argv: Sequence[str]) -> str:
    """The message of an error with the option in the place of the function's argument that it begins with.

    known: the options of the command; argv: what was typed. A message that begins otherwise stays as it is.
    """
    named = _ARGUMENT.match(message)
    if named is None:
        return message
    others = [option for option in _COME_BY.get(named[1], ()) if option in known]
    typed = [option for option in others if any(f"{word}=".startswith(f"{option}=") for word in argv)]
    own = f"--{named[1].replace('_', '-')}"
    options = typed or ([own] if own in known else others[:1])
    return f"{' and '.join(options)}{message[named.end() :]}" if options else message


def not_empty(text: str) -> str:
    """A path or a name."""
    if not text:
        raise argparse.ArgumentTypeError("need a path or a name, got ''")
    return text


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """An integer not below `least`, nor above `most`."""

    def whole_number(text: str) -> int:
        try:
            value = int(_ungrouped(text))
        except ValueError:
            raise argparse.ArgumentTypeError(f"need a whole number, got {text!r:.40}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"need at least {least}, got {text}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"need at most {most:,}, got {text:.40}")
        return value

    return whole_number


def _ungrouped(text: str) -> str:
    """Without the commas between groups of three digits: "1,000" is a number, and "1,8" are two."""
    return text.replace(",", "") if re.fullmatch(r"\s*[-+]?\d{1,3}(,\d{3})+\s*", text) else text


def count(text: str) -> int:
    """A whole number, also as 16e6."""
    try:
        value = float(_ungrouped(text))
        found = int(value) if value == int(value) else -1
    except (ValueError, OverflowError):
        found = -1
    if found < 0 or found > 10**18:
        raise argparse.ArgumentTypeError(f"need a whole number such as 16e6, got {text!r:.40}")
    return found


def tokens_or_all(text: str) -> int | None:
    """A positive number of tokens, or "all" (None)."""
    return None if text == "all" else at_least(1)(text)


def names_of(known: Sequence[str], at_least_one: bool = False) -> Callable[[str], tuple[str, ...]]:
    """Names from `known`, comma-separated; "none" for none of them, unless there has to be one."""

    or_none = "" if at_least_one else " (or none)"

    def names(text: str) -> tuple[str, ...]:
        none = text == "none" and not at_least_one
        found = () if none else tuple(part.strip() for part in text.split(","))
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"need some of {', '.join(known)}{or_none}, got {name!r}")
        return found

    return names


_SITE_AND_PATH = re.compile(r"(?P<site>([^=\[]|\[\w+=\d+\])+)=(?P<path>.+)", re.DOTALL)


def site_and_path(text: str) -> tuple[str, str]:
    """ "SITE=PATH" as a pair; only the first "=" parts them that is not of "[head=2]". "PATH" has the site ""."""
    parted = _SITE_AND_PATH.fullmatch(text)
    if parted:
        return parted["site"], parted["path"]
    if text and "=" not in text and ("/" in text or os.path.exists(text)):
        return "", text
    raise argparse.ArgumentTypeError(
        f"need SITE=PATH, for example model.layers.3=saes/layer_3, or a PATH whose files say the site, got {text!r}"
    )


def positive(text: str, of: str = "", least: float = 0.0) -> float:
    """A finite number above `least`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least < value < math.inf:
        need = f"a number above {least:g}" if least else "a positive number"
        raise argparse.ArgumentTypeError(f"need {need}{of}, got {text!r}")
    return value


def seconds(text: str) -> float:
    """A positive finite number of seconds."""
    return positive(text, " of seconds")
