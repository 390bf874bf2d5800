"""Gradients of one step on several cores, one core to a piece of the batch.

A matrix of a small model is too small to split well over cores that other programs use too: every product waits for
the slowest core. Here each core takes whole pieces, the next piece when it is ready, and the gradients are
summed in the order of the pieces, so the result does not depend on which core was faster.
"""

from __future__ import annotations

import copy
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


class Workers:
    """`threads` replicas of a causal language model that share its parameters."""

    def __init__(self, model: torch.nn.Module, threads: int) -> None:
        torch.set_num_threads(1)
        self.model = model
        self.replicas: queue.SimpleQueue[torch.nn.Module] = queue.SimpleQueue()
        for _ in range(threads):
            replica = copy.deepcopy(model)
            for mine, theirs in zip(replica.parameters(), model.parameters(), strict=True):
                mine.data = theirs.data
            self.replicas.put(replica)
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def _piece(self, ids: Tensor) -> tuple[float, list[Tensor]]:
        replica = self.replicas.get()
        try:
            loss = replica(input_ids=ids, labels=ids).loss
            return loss.item(), list(torch.autograd.grad(loss, list(replica.parameters())))
        finally:
            self.replicas.put(replica)

    def gradients(self, pieces: Sequence[Tensor]) -> float:
        """Put the gradient of the mean loss over `pieces` of equal size into the model; returns that loss."""
        total, parameters = 0.0, list(self.model.parameters())
        for loss, gradients in self.pool.map(self._piece, pieces):
            total += loss / len(pieces)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient / len(pieces)
                else:
                    parameter.grad.add_(gradient, alpha=1 / len(pieces))
        return total
