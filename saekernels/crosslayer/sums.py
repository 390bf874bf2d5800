"""What the codes of all layers so far write at a layer, with one product for all the targets that are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from saekernels.crosslayer.source import SourceLayer
from saekernels.sae.codes import Codes

BYTES = 1 << 23
"""The most that sums take without gradients, one target's apart: where they leave the caches, wide rows gain nothing.

While a layer's are added, as much again is taken."""


class TargetSums:
    """Running sums of one pass over a cross-layer transcoder, for its targets asked for in ascending order.

    Args:
        sources, b_dec: those of the `CrossLayerTranscoder`.

    A layer's codes are decoded once, to the target at hand and all that will be wanted after it, whose rows lie side by
    side: a target's sum is taken in the order of the layers, so that it has the same bits however many are summed
    together. [T, targets, d_out] in float32 is held until the last of them is asked for, without gradients of no more
    targets than `BYTES` allow; the next group begins with the codes of all layers again, for which it reads other rows.

    Codes other than those that are in the sums, as of the next pass, begin new ones.
    """

    def __init__(self, sources: nn.ModuleList, b_dec: nn.ParameterList) -> None:
        self._sources, self._b_dec = sources, b_dec
        self.clear()

    def clear(self) -> None:
        """Let go of everything."""
        self._first = 0
        self._added: list[Codes | None] = []
        self._sums: Tensor | None = None

    def at(self, target: int, codes: Sequence[Codes | None], last: int) -> Tensor:
        """[..., d_out] in the dtype of b_dec: what codes of layers 0 .. target write there, and b_dec.

        codes: of each layer up to the target, None for one that is switched off, not for all. last: the last target
        that will be asked for with these codes; one after it is found all the same, later than it could be.

        Raises ValueError where the tokens of codes differ.
        """
        own, bias = list(codes[: target + 1]), self._b_dec[target]
        shape = next(one.shape for one in own if one is not None)
        sums = self._left(target, own)
        if sums is None:
            self.clear()
        begins, wanted = sums is None, self._together(target, last, shape) if sums is None else sums.shape[1]
        b_dec = torch.cat([self._b_dec[t] for t in range(target, target + wanted)]) if begins else None
        for s in range(len(self._added), target + 1):
            now = own[s]
            if now is None:
                continue
            if now.shape != shape:
                raise ValueError(f"codes: those of layer {s} are of tokens {list(now.shape)}, need {list(shape)}")
            source = cast(SourceLayer, self._sources[s])
            first = None if b_dec is None or sums is not None else b_dec.to(source.W_dec.device)
            # Layers may lie on different devices: codes are decoded where they are, and only sums move.
            added = source.decode_to(target - s, now, first, targets=wanted).to(bias.device)
            added = added.view(shape.numel(), wanted, len(bias))
            # Autograd would record every write to a view.
            sums = added if sums is None else sums + added if torch.is_grad_enabled() else sums.add_(added)
        assert sums is not None
        if wanted == 1:
            self.clear()
        else:
            self._first, self._added, self._sums = target, own, sums
        # What is returned must neither hold the sums of other targets nor change with them.
        alone = begins and wanted == 1
        return sums[:, 0].to(bias.dtype, copy=not alone).view(*shape, len(bias))

    def _left(self, target: int, codes: Sequence[Codes | None]) -> Tensor | None:
        """The sums from `target` on, if those that are held are of these codes and go so far."""
        sums, shift = self._sums, target - self._first
        if sums is None or not 0 <= shift < sums.shape[1]:
            return None
        if any(held is not now for held, now in zip(self._added, codes, strict=False)):
            return None
        return sums[:, shift:]

    def _together(self, target: int, last: int, shape: torch.Size) -> int:
        """How many targets are summed together from this one on."""
        b_dec = self._b_dec[target]
        wanted = max(1, last + 1 - target)
        if not torch.is_grad_enabled():  # else the weights' gradients cost more, and are those of all rows for each sum
            wide = 8 if b_dec.dtype == torch.float64 else 4
            wanted = max(1, min(wanted, BYTES // max(1, shape.numel() * len(b_dec) * wide)))
        devices = {self._b_dec[t].device for t in range(target, target + wanted)}
        return wanted if len(devices) == 1 else 1
