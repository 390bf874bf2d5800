"""BatchTopK's codes over several processes: the largest pre-activations of the rows of all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from saekernels.ops.encode_threshold import CsrCodes
from saekernels.parallel.collectives import gathered, gathered_ragged
from saekernels.sae.batch_topk import Alone, Encoder, above, batch_codes, equal


def encode_batch_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None = None,
    *,
    n: int,
    group: Any = None,
    pre_bias: Tensor | None = None,
    scale: Tensor | None = None,
    guess: float | None = None,
) -> CsrCodes:
    """`saekernels.training.encode_batch_topk` of the batch that all ranks' rows make, one after the other.

    Each rank has its own rows and the same encoder, and calls it at the same time; its codes are those that one process
    with all of the rows would have for them, ties included, on the CPU to the bit. A loss that is summed over the rows
    has the gradients of that process, once they are summed over the ranks.

    Args:
        x: [T, d], this rank's rows; T may differ, and be 0.
        n: of all ranks together; the same in all of them.
        group: the ranks; None for the default group.
        W_enc, b_enc, pre_bias, scale, guess: as there; guesses may differ.

    Returns:
        CsrCodes of this rank's rows.

    Raises:
        ValueError: as there; in every rank, where not all were given the same n.
        RankLostError: another process has ended.
    """
    return batch_codes(Encoder(x, W_enc, b_enc, pre_bias, scale), n, guess, _Group(group, x.device))


class _Group(Alone):
    """The rows of all ranks. Messages: three numbers, one number for each floor that is tried, and about n scores."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group, self._device = group, device

    def _told(self, *numbers: float) -> Tensor:
        """[ranks, numbers] float64 on the CPU."""
        mine = torch.tensor([numbers], dtype=torch.float64, device=self._device)
        return gathered(mine, self._group)[:, 0].cpu()

    def rows(self, mine: int, n: int) -> int:
        told = self._told(mine, n).long()
        if len(wanted := told[:, 1].unique()) > 1:
            raise ValueError(f"n: got {n} here and from {wanted[0]} to {wanted[-1]} in the ranks, need the same in all")
        return int(told[:, 0].sum())

    def least(self, guess: float | None) -> float:
        least = float(self._told(torch.inf if guess is None else guess).min())
        return least if least < torch.inf else 0.0

    def total(self, count: int) -> int:
        return int(self._told(count).sum())

    def cut(self, scores: Tensor, n: int) -> tuple[Tensor, int] | None:
        ranked = scores.topk(min(n, scores.numel())).values
        ranks = gathered_ragged(ranked, self._group)
        every = torch.cat(ranks)
        if every.numel() < n:  # as many may be some of the best of a rank, which sends no more
            return None
        least = every.topk(n).values[-1]
        before = sum(int(equal(one, least).sum()) for one in ranks[: distributed.get_rank(self._group)])
        return least, n - int(above(every, least).sum()) - before
