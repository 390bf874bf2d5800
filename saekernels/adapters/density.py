"""When a training step goes from dense to sparse: codes of threshold classes are dense when training begins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from saekernels.adapters.patch import State

_SPARSE, _DENSE = 1 / 16, 1 / 10  # shares of all entries: of fewer, sparse steps are faster; of more, dense ones
_SAMPLE = 64  # rows that are looked at before a dense step


def is_dense(state: State, x: Tensor, products: Callable[[Tensor], Tensor], lowest: Tensor) -> bool:
    """Whether dense products are faster for a batch x [T, d_in]; slow to change its mind, so that it does not waver.

    products: the encoder's products [rows, F] of some rows, without its bias. lowest: [F], what they have to exceed for
    an entry that a sparse step looks at. A sparse step tells its own density by `note`; before a dense one some rows
    are looked at.
    """
    memory = state.memory
    if memory.get("dense") or "density" not in memory:
        with torch.no_grad():
            found = products(x[:_SAMPLE])
            note(state, int((found > lowest.detach()).sum()), found.numel())
    memory["dense"] = memory["density"] > (_SPARSE if memory.get("dense") else _DENSE)
    return bool(memory["dense"])


def note(state: State, entries: int, of: int) -> None:
    """How many entries a step looked at, of how many there are."""
    state.memory["density"] = entries / max(1, of)
