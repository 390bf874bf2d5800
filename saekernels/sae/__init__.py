"""One SAE as data plus encoders, and whatever stands where an SAE stands: edited, or an affine probe."""

from saekernels.sae.module import SAE

__all__ = ["SAE"]
