"""The command line: `saekernels eval`, `saekernels bench` and `saekernels info`."""

from saekernels.cli.entry import main

__all__ = ["main"]
