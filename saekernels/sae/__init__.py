"""One SAE module."""

from saekernels.sae.module import SAE

__all__ = ["SAE"]
