"""When a training step goes from dense to sparse: codes of threshold classes are dense when training begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saekernels.adapters.patch import State

_SPARSE, _DENSE = 1 / 16, 1 / 10  # shares of all entries: of fewer, sparse steps are faster; of more, dense ones
_SAMPLE = 64  # rows that are looked at before a dense step


def is_dense(module: Any, x: Tensor, state: State, lowest: Tensor) -> bool:
    """Whether dense products are faster for a batch x [T, d_in]; slow to change its mind, so that it does not waver.

    lowest: [F], what x @ W_enc has to exceed for an entry that a sparse step looks at. A sparse step tells its own
    density by `note`; before a dense one some rows are looked at.
    """
    memory = state.memory
    if memory.get("dense") or "density" not in memory:
        with torch.no_grad():
            rows = module.run_time_activation_norm_fn_in(x[:_SAMPLE].to(module.dtype))
            products = (rows - module.b_dec * module.cfg.apply_b_dec_to_input) @ module.W_enc
            note(state, int((products > lowest.detach()).sum()), products.numel())
    memory["dense"] = memory["density"] > (_SPARSE if memory.get("dense") else _DENSE)
    return bool(memory["dense"])


def note(state: State, entries: int, of: int) -> None:
    """How many entries a step looked at, of how many there are."""
    state.memory["density"] = entries / max(1, of)
