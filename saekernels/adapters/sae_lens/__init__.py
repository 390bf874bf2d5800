"""SAELens: which of its objects are served and how, and the training steps of those that it trains."""

from saekernels.adapters.sae_lens.objects import PACKAGE, VERSIONS, classes, held, known, plan, settings
from saekernels.adapters.sae_lens.trials import trials

__all__ = ["PACKAGE", "VERSIONS", "classes", "held", "known", "plan", "settings", "trials"]
