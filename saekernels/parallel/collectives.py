"""What the processes of one SAE tell each other: codes of every shard, and sums in the order of the ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function

# torch 2.13 has renamed it, and warns of the old name.
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


class RankLostError(RuntimeError):
    """Another process has ended or cannot be reached, so this one cannot go on."""


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Around a collective: RankLostError where it fails. Memory that runs out stays what it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, EOFError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RankLostError(f"a process of the evaluation is lost: {reason}") from error


def device_for(group: Any, value: object) -> torch.device:
    """Where what a group's ranks tell each other has to be: where a tensor is, if the group serves that."""
    served = str(distributed.get_backend_config(group))
    if isinstance(value, Tensor) and f"{value.device.type}:" in served:
        return value.device
    return torch.device("cpu" if "cpu:" in served else "cuda")


def gathered_objects(own: Any, group: Any) -> list[Any]:
    """Every rank's object."""
    found: list[Any] = [None] * distributed.get_world_size(group)
    with reaching():
        distributed.all_gather_object(found, own, group=group)
    return found


def gathered(mine: Tensor, group: Any) -> Tensor:
    """[ranks, ...]: every rank's tensor, all of one shape."""
    ranks = distributed.get_world_size(group)
    out = mine.new_empty(ranks * mine.shape[0], *mine.shape[1:])
    if mine.numel():
        with reaching():
            _all_gather(out, mine.contiguous(), group=group)
    return out.view(ranks, *mine.shape)


def gathered_ragged(mine: Tensor, group: Any) -> list[Tensor]:
    """Every rank's one-dimensional tensor, of any lengths."""
    lengths = gathered(torch.tensor([len(mine)], device=mine.device), group).flatten().tolist()
    padded = torch.nn.functional.pad(mine, (0, max(lengths) - len(mine)))
    return [row[:length] for row, length in zip(gathered(padded, group), lengths, strict=True)]


def ordered_sum(mine: Tensor, group: Any) -> Tensor:
    """The sum of every rank's mine [T, d], added in the order of the ranks, so it has the same bits in each of them.

    Each rank adds up its share of the rows: it receives and sends (ranks - 1) / ranks of two matrices, as a ring
    would, whose order of summation differs from row to row.
    """
    ranks = distributed.get_world_size(group)
    if ranks == 1 or not mine.numel():
        return mine
    rows = mine.shape[0]
    share = -(-rows // ranks)
    padded = torch.nn.functional.pad(mine, (0, 0, 0, share * ranks - rows))
    parts = torch.empty_like(padded)
    with reaching():
        distributed.all_to_all_single(parts, padded, group=group)
    total, *others = parts.view(ranks, share, -1)
    for part in others:
        total = total + part
    return gathered(total, group).view(ranks * share, -1)[:rows]


def summed(mine: Tensor, group: Any) -> Tensor:
    """`ordered_sum`; the gradient of the sum is that of every rank's part."""
    return _SummedForward.apply(mine, group)  # type: ignore[no-untyped-call]


def summed_backward(x: Tensor, group: Any) -> Tensor:
    """x [T, d], which every rank reads; its gradient is the sum of theirs."""
    return _SummedBackward.apply(x, group)  # type: ignore[no-untyped-call]


class _SummedForward(Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: Any) -> Tensor:
        return ordered_sum(mine, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _SummedBackward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ordered_sum(grad, ctx.group), None
