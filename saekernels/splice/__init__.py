"""Splices."""

from saekernels.splice.context import Splice, splice

__all__ = ["Splice", "splice"]
