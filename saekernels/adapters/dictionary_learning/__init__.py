"""dictionary_learning: which dictionaries and trainers are served and how, and the trainers' steps."""

from saekernels.adapters.dictionary_learning.objects import settings
from saekernels.adapters.dictionary_learning.trainers import PACKAGE, VERSIONS, classes, held, known, plan
from saekernels.adapters.dictionary_learning.trials import trials

__all__ = ["PACKAGE", "VERSIONS", "classes", "held", "known", "plan", "settings", "trials"]
