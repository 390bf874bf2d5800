"""BatchTopK's codes over several processes: the largest pre-activations of the rows of all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from saekernels.ops import _check
from saekernels.ops.encode_threshold import CsrCodes
from saekernels.parallel.agree import agree, told
from saekernels.parallel.collectives import device_for, gathered_ragged
from saekernels.parallel.shards import size_and_rank
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
        TypeError, ValueError: as there, in every rank, whichever of them was given it, which the message names; and
            where not all were given the same n, or encoders of the same shapes and dtypes.
        RankLostError: another process has ended.
    """
    size_and_rank(group)
    return batch_codes(Encoder(x, W_enc, b_enc, pre_bias, scale), n, guess, _Group(group, device_for(group, x)))


class _Group(Alone):
    """The rows of all ranks. Messages: eight numbers, one number for each floor that is tried, and about n scores."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group, self._device = group, device

    def rows(self, of: Encoder, n: int, refusal: Exception | None) -> int:
        # Such as only a difference between ranks would have wait for one another.
        names = ("n", "the rows of W_enc", "the columns of W_enc", "the dtype of x", "whether there is a scale")

        def numbers() -> tuple[int, ...]:
            return n, *of.W_enc.shape, _check.FLOATS.index(of.x.dtype), of.scale is not None, len(of.x)

        every = agree(refusal, names, numbers, self._group, self._device, _shown)
        return int(every[:, len(names)].sum())

    def _told(self, number: float) -> Tensor:
        return told([number], self._group, self._device)

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


def _shown(name: str, number: int) -> str:
    if name == "the dtype of x":
        return str(_check.FLOATS[number]).removeprefix("torch.")
    return str(bool(number)) if name == "whether there is a scale" else str(number)
