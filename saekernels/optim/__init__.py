"""Optimizers whose step is one pass over memory, and what it takes to clip without another."""

from saekernels.optim.adam import Adam
from saekernels.optim.clip import clip_factor

__all__ = ["Adam", "clip_factor"]
