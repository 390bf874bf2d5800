"""What one rank refuses all of them refuse, by that rank's number, and none waits for a message that never comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from saekernels.parallel.collectives import gathered, gathered_objects

# What `agree` passes on; whatever else is raised ends the process.
REFUSALS = (ValueError, TypeError, NotImplementedError)
SIZE = 8  # numbers of a message: whether its rank refuses, its numbers, and zeros


def told(numbers: Sequence[float], group: Any, device: torch.device) -> Tensor:
    """[ranks, numbers] float64 on the CPU."""
    return gathered(torch.tensor([numbers], dtype=torch.float64, device=device), group)[:, 0].cpu()


def agree(
    refusal: Exception | None,
    names: Sequence[str],
    numbers: Callable[[], Sequence[float]],
    group: Any,
    device: torch.device,
    shown: Callable[[str, int], str] = lambda name, number: str(number),
) -> Tensor:
    """Every rank's whole numbers, int64 [ranks, SIZE - 1], if none refuses and those with a name are the same in all.

    Args:
        refusal: what this rank raises, one of REFUSALS, or None.
        names: of the first numbers.
        numbers: makes this rank's, unless it refuses.
        group: the ranks.
        device: of the message; the same kind in every rank.
        shown: how a number is put in an error.

    Raises:
        ValueError, TypeError, NotImplementedError: in every rank, what the first that refuses does.
        ValueError: in every rank, where a number with a name is another in one of them.
    """
    mine = [] if refusal is not None else list(numbers())
    message = [float(refusal is not None), *mine]
    every = told([*message, *[0.0] * (SIZE - len(message))], group, device).long()
    if every[:, 0].any():
        _refuse(refusal, group)
    for name, said in zip(names, every[:, 1:].T.tolist(), strict=False):
        words = [shown(name, number) for number in said]
        if len(set(words)) > 1:
            each = ", ".join(f"{one} in rank {rank}" for rank, one in enumerate(words))
            raise ValueError(f"{name}: got {each}, need the same in all")
    return every[:, 1:]


def _refuse(refusal: Exception | None, group: Any) -> None:
    kinds = [isinstance(refusal, kind) for kind in REFUSALS]
    every = gathered_objects(None if refusal is None else (kinds.index(True), str(refusal)), group)
    rank, (kind, said) = next((rank, one) for rank, one in enumerate(every) if one is not None)
    raise REFUSALS[kind](f"{said} (in rank {rank})") from refusal
