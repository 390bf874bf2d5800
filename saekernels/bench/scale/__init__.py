"""What a spliced evaluation will take at a scale that is not at hand, from the cost model."""

from saekernels.bench.scale.job import Job
from saekernels.bench.scale.predict import Prediction, predict

__all__ = ["Job", "Prediction", "predict"]
