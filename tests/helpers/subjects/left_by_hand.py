"""Which positions a splice replaces under a rule for those left as they are, window by window with plain hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.text.windows import Window
from saekernels.splice.leave import Norms


@torch.no_grad()
def replaced(
    model: Any, windows: Sequence[Window], sites: Sequence[str], first: int, ratio: float | None
) -> list[dict[str, Tensor]]:
    """Of each window, site -> [S] bool; the medians are those of all these windows."""
    seen: dict[str, list[Tensor]] = {site: [] for site in sites}

    def keep(site: str) -> Any:
        return model.get_submodule(site).register_forward_hook(
            lambda module, given, out: seen[site].append((out if isinstance(out, Tensor) else out[0])[0])
        )

    handles = [keep(site) for site in sites]
    for window in windows:
        model(torch.from_numpy(window.ids).long()[None])
    for handle in handles:
        handle.remove()
    candidates = [~torch.from_numpy(w.special) & (torch.arange(len(w.ids)) >= first) for w in windows]
    made: list[dict[str, Tensor]] = [{} for _ in windows]
    for site, rows in seen.items():
        norms = Norms()
        for x, kept in zip(rows, candidates, strict=True):
            norms.add(x, x, kept)
        for one, x, kept in zip(made, rows, candidates, strict=True):
            one[site] = kept if ratio is None else kept & ~norms.outlying(x, x, ratio)
    return made
