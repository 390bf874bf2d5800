"""Reads and writes the checkpoints of other SAE tools; `readers` has a file for each."""

from saekernels.formats.crosscoders.load import load_crosscoder
from saekernels.formats.files import FormatError
from saekernels.formats.load import FORMATS, TORCH_FORMATS, load, save

__all__ = ["FORMATS", "TORCH_FORMATS", "FormatError", "load", "load_crosscoder", "save"]
