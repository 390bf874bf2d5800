"""Strata of predictions: by how much context there is, and by how frequent the predicted token is in this text."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

POSITION_EDGES = (4, 16, 64, 256, 1024)
FREQUENCY_EDGES = (1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True)
class Strata:
    """Cells of one prediction: 0 for all of them, then its position's, then its target's frequency's.

    frequency_cell [V] int64: cell of each token.
    """

    position_names: tuple[str, ...]
    frequency_names: tuple[str, ...]
    frequency_cell: Tensor

    @property
    def cells(self) -> int:
        """How many cells there are: the one for all predictions, and one for each name."""
        return 1 + len(self.position_names) + len(self.frequency_names)

    def position_cells(self, positions: Tensor) -> Tensor:
        """positions [n] int64, tokens of context before the predicted one (special ones too), from 1."""
        edges = torch.tensor(POSITION_EDGES[: len(self.position_names) - 1])
        return 1 + torch.bucketize(positions, edges, right=True)

    def slices(self) -> dict[str, dict[str, int]]:
        """Axis -> name -> cell."""
        first = 1 + len(self.position_names)
        return {
            "position": {name: 1 + i for i, name in enumerate(self.position_names)},
            "frequency": {name: first + i for i, name in enumerate(self.frequency_names)},
        }


def make_strata(frequencies: np.ndarray, context: int) -> Strata:
    """Position buckets up to `context`, and frequency buckets of tokens that occur `frequencies` [V] times."""
    edges = [edge for edge in POSITION_EDGES if edge < context]
    bounds = [1, *edges, context]
    positions = [f"{low}-{high - 1}" if low < high - 1 else f"{low}" for low, high in itertools.pairwise(bounds)]
    share = frequencies / max(1, frequencies.sum())
    names = [f">= {FREQUENCY_EDGES[0]:g}"]
    names += [f"{low:g} to {high:g}" for high, low in itertools.pairwise(FREQUENCY_EDGES)]
    names += [f"< {FREQUENCY_EDGES[-1]:g}"]
    first = 1 + len(positions)
    bucket = np.searchsorted(-np.asarray(FREQUENCY_EDGES), -share, side="left")
    return Strata(tuple(positions), tuple(names), torch.from_numpy(first + bucket.astype(np.int64)))
