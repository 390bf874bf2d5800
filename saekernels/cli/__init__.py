"""The command line: `saekernels eval`, `saekernels bench` and `saekernels info`."""

from .entry import main

__all__ = ["main"]
