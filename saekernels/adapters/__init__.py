"""Makes live objects of other SAE tools fast: same object, same type, same results; one file per tool.

A tool whose training steps are served has a room instead. Each is imported only once the tool itself is.
"""

from saekernels.adapters.accelerate import StepCounts, accelerate, is_accelerated, restore, step_counts
from saekernels.adapters.errors import NotAccelerated, UnknownVersion
from saekernels.adapters.swap import swapped
from saekernels.adapters.tools import TOOLS

__all__ = [
    "TOOLS",
    "NotAccelerated",
    "StepCounts",
    "UnknownVersion",
    "accelerate",
    "is_accelerated",
    "restore",
    "step_counts",
    "swapped",
]
