"""Batches of windows of like length, as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saekernels.eval.text.windows import Window


@dataclass(frozen=True)
class Batch:
    """Windows side by side.

    ids [B, S] int64, padded on the right; touched [B, S] bool; rows [n] int64, the flat positions whose predictions
    count, with their targets, documents and nbytes [n] int64; windows: where they came from; positions: tokens without
    the padding.
    """

    ids: Tensor
    touched: Tensor
    rows: Tensor
    targets: Tensor
    documents: Tensor
    nbytes: Tensor
    windows: Sequence[Window]
    positions: int

    @property
    def context(self) -> Tensor:
        """[n] int64: tokens in front of each predicted one."""
        return self.rows % self.ids.shape[1] + 1


def batches(windows: Sequence[Window], batch_size: int, context: int, leave_first: int = 0) -> Iterator[Batch]:
    """Batches of windows of like length, longest first; each holds at most `batch_size` * `context` positions.

    leave_first: the first so many positions of each window are not touched.
    """
    order = sorted(range(len(windows)), key=lambda i: -len(windows[i].ids))
    start = 0
    while start < len(order):
        width = len(windows[order[start]].ids)
        count = max(1, batch_size * context // width)
        yield make_batch([windows[i] for i in order[start : start + count]], leave_first)
        start += count


def make_batch(windows: Sequence[Window], leave_first: int = 0) -> Batch:
    """Pad on the right with id 0; causal models never look at what comes after, so no attention mask is needed."""
    width = max(len(window.ids) for window in windows)
    ids = np.zeros((len(windows), width), dtype=np.int64)
    touched = np.zeros((len(windows), width), dtype=bool)
    rows, targets, documents, nbytes = [], [], [], []
    for b, window in enumerate(windows):
        ids[b, : len(window.ids)] = window.ids
        touched[b, : len(window.ids)] = ~window.special
        touched[b, :leave_first] = False
        at = np.flatnonzero(window.counted)
        rows.append(b * width + at)
        targets.append(window.ids[at + 1].astype(np.int64))
        documents.append(np.full(len(at), window.document, dtype=np.int64))
        nbytes.append(window.nbytes[at + 1].astype(np.int64))
    positions = sum(len(window.ids) for window in windows)
    parts = [torch.from_numpy(np.concatenate(part)) for part in (rows, targets, documents, nbytes)]
    at_rows, at_targets, of_documents, of_bytes = parts
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(touched),
        at_rows,
        at_targets,
        of_documents,
        of_bytes,
        windows,
        positions,
    )
