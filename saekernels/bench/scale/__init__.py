"""What a spliced evaluation will take at a scale that is not at hand: time, memory and traffic, from the cost model."""

from .job import Job
from .predict import Prediction, predict

__all__ = ["Job", "Prediction", "predict"]
