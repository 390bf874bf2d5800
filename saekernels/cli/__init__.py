"""The command line: `saekernels eval` and `saekernels info`."""

from .entry import main

__all__ = ["main"]
