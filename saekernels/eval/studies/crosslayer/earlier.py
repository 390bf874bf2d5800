"""What later layers are told of what earlier ones read, where all layers together read too much for second moments.

Of every layer a few linear combinations of what it reads: those that best predict random combinations of all that it
and later layers write, which is a randomized range finder (Halko, Martinsson, Tropp 2011) of the least-squares map from
what is read to what is written later. A map across layers then reads the layer's own input whole, and these of the
layers before: never worse, on the rows that are fitted on, than the map of the layer alone, and bounded in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.sums.row_groups import RowGroups
from saekernels.sae.probes import AffineProbe, Moments, fit_probes

MOST_EARLIER = 1024
"""Numbers that a layer is told of all layers before it together."""


class Sketch:
    """Of each layer random combinations of what it and all later ones write."""

    def __init__(self, widths: Sequence[tuple[int, int]]) -> None:
        self.size = max(1, min(MOST_EARLIER // len(widths), max(d_in for d_in, _ in widths)))
        made = torch.Generator().manual_seed(0)
        self._mixes = [torch.randn(d_out, self.size, generator=made) for _, d_out in widths]

    def of(self, writes: Sequence[Tensor]) -> list[Tensor]:
        """[n, size] fp32 of each layer, of rows [n, d_out] of all."""
        total, made = torch.zeros((), dtype=torch.float32), []
        for y, mix in zip(reversed(writes), reversed(self._mixes), strict=True):
            total = total.to(y.device) + y.float() @ mix.to(y.device)
            made.append(total)
        return made[::-1]


class Earlier:
    """Moments from what each layer reads, and is told of layers before, to what it writes.

    told: of each layer the map whose first half makes what later layers are told of it (`telling`).
    Memory: (m + d_in) * (m + d_in + d_out) doubles per layer, m being MOST_EARLIER at most.
    """

    def __init__(self, told: Sequence[AffineProbe], widths: Sequence[tuple[int, int]]) -> None:
        self.told = list(told)
        sizes = [one.rank for one in told]
        self.moments = [Moments(sum(sizes[:t]) + d_in, d_out) for t, (d_in, d_out) in enumerate(widths)]
        self._group = RowGroups(self._take)

    def add(self, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """Rows [n, d_in] and [n, d_out] of each layer, of the same positions."""
        self._group.add(*(one.cpu() for one in (*reads, *writes)))

    def _take(self, *rows: Tensor) -> None:
        reads, writes = rows[: len(self.moments)], rows[len(self.moments) :]
        before: list[Tensor] = []
        for moments, told, x, y in zip(self.moments, self.told, reads, writes, strict=True):
            moments.add(torch.cat([*before, x.float()], 1), y)
            before.append(telling(told, x))

    def flush(self) -> None:
        """Count in the rows that still wait for others."""
        self._group.flush()

    def maps(self, ranks: Sequence[int]) -> list[AffineProbe]:
        """Of each layer the best map of that rank to what it writes."""
        return [fit_probes(one, [rank])[rank] for one, rank in zip(self.moments, ranks, strict=True)]

    def state(self) -> dict[str, Any]:
        """Everything, to be saved and given to `load`."""
        return {"moments": [one.state() for one in self.moments]}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; what was seen before is forgotten."""
        for one, own in zip(self.moments, state["moments"], strict=True):
            one.load(own)

    def merge(self, state: dict[str, Any]) -> None:
        """Add what another one of the same layers has seen."""
        for one, own in zip(self.moments, state["moments"], strict=True):
            one.merge(own)


def telling(told: AffineProbe, x: Tensor) -> Tensor:
    """[..., rank] fp32: what later layers are told of what a layer reads [..., d_in]."""
    made: Tensor = (x.to(told.W_enc) - told.mean_in) @ told.W_enc.T
    return made
