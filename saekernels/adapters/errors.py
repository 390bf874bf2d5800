"""What `saekernels.accelerate` raises and warns."""

from __future__ import annotations


class NotAccelerated(ValueError):
    """An object that cannot be accelerated; the message says why."""


class UnknownVersion(UserWarning):
    """A tool of a version that this library was not checked against; the object was verified on a small batch."""
