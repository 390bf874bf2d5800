"""The one exception that means "what you gave cannot be evaluated", and how its messages are put."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast


class InputError(ValueError):
    """Bad input from the user: a file, a name, a size or a value. The command line prints it and exits with 2."""


class InputTypeError(InputError, TypeError):
    """Bad input of the wrong kind."""


def check_each(name: str, given: object, kind: type) -> None:
    """InputTypeError unless what was given as the argument `name` is a sequence of these."""
    wrong = [] if isinstance(given, Sequence) else [given]
    wrong = wrong or [one for one in cast(Sequence[object], given) if not isinstance(one, kind)]
    if wrong:
        one = f" with {kind_of(wrong[0])}" if isinstance(given, Sequence) else ""
        raise InputTypeError(f"{name}: got {kind_of(given)}{one}, need a sequence of saekernels.{kind.__name__}")


def missing_extra(package: str, purpose: str, extra: str = "eval") -> InputError:
    """The error for an optional package that is not installed, and the extra that brings it."""
    return InputError(f"{purpose} needs the package {package!r}; install it with: pip install 'saekernels[{extra}]'")


def first_line(error: BaseException) -> str:
    """The first non-empty line of an exception's text, or its type if it has none.

    A line that ends in a colon only announces the next one.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def kind_of(value: object) -> str:
    """How a message names what it got instead of what was needed: the type's name, or None."""
    return "None" if value is None else type(value).__name__
