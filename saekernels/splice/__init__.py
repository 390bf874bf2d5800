"""Puts SAEs into a running model for the length of a `with` block."""

from saekernels.splice.context import Splice, splice

__all__ = ["Splice", "splice"]
