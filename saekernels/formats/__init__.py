"""Reads and writes the checkpoints of other SAE tools; `readers` has a file for each."""

from saekernels.formats.crosscoders.load import load_crosscoder
from saekernels.formats.files import FormatError
from saekernels.formats.layers.load import load_cross_layer
from saekernels.formats.layers.write import save_cross_layer
from saekernels.formats.load import FORMATS, TORCH_FORMATS, load, save

__all__ = [
    "FORMATS",
    "TORCH_FORMATS",
    "FormatError",
    "load",
    "load_cross_layer",
    "load_crosscoder",
    "save",
    "save_cross_layer",
]
