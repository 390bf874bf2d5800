"""The command line: a command parses, calls one function below, and shows its result."""

from saekernels.cli.entry import main

__all__ = ["main"]
