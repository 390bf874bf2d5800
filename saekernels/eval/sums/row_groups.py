"""Sums over rows that come in batches, in an order that does not depend on how they were batched."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class RowGroups:
    """Rows of one or more tensors, handed on to take(*parts) in groups of `size`; what is left over at `flush`.

    A matrix product over a group has the same shape, and so the same order of summation, whatever the batches were.
    """

    def __init__(self, take: Callable[..., None], size: int = 1024) -> None:
        self._take, self._size = take, size
        self._waiting: tuple[Tensor, ...] = ()

    def add(self, *rows: Tensor | None) -> None:
        """Tensors [n, ...] of as many rows each; None stands for one that is never there."""
        given = tuple(one for one in rows if one is not None)
        if self._waiting:
            given = tuple(torch.cat(pair) for pair in zip(self._waiting, given, strict=True))
        whole = len(given[0]) - len(given[0]) % self._size
        for parts in zip(*(one[:whole].split(self._size) for one in given if whole), strict=True):
            self._take(*parts)
        self._waiting = tuple(one[whole:].clone() for one in given)

    def flush(self) -> None:
        """Hand on what is left."""
        if self._waiting and len(self._waiting[0]):
            self._take(*self._waiting)
        self._waiting = ()


def add_rows(total: Tensor, rows: Tensor) -> Tensor:
    """total [m] + the sum of rows [n, m], fp64 on the CPU; m at least 2.

    On the CPU one row after the other, so adding rows in parts has the same bits; on another device its own sum.
    """
    if rows.device.type != "cpu":
        return total + rows.double().sum(0).cpu()
    # numpy reduces an outer axis row by row; torch, and an inner axis, in blocks that depend on the length.
    held = torch.cat([total[None], rows.double()]).numpy()
    return torch.from_numpy(np.add.reduce(held, axis=0))
