"""What is put in at layers that keep something of the layers before, as functions for `splice`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saekernels.crosslayer.running import RunningCodes
from saekernels.eval.studies.crosslayer.earlier import telling
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.sae.codes import Codes
from saekernels.sae.probes import AffineProbe

Put = Callable[[Tensor, Tensor], Tensor]
"""(what a layer reads, what its MLP gives) -> what is put in."""
Change = Callable[[int, Codes], Codes]
"""(number of a layer, its codes) -> the codes that write in their place."""


def changed(subject: Subject, change: Change) -> Callable[[int], Put]:
    """Of each layer: joint, with changed codes."""
    running = RunningCodes[Codes](subject.layers)

    def at(number: int) -> Put:
        def put(x: Tensor, y: Tensor) -> Tensor:
            running.put(number, change(number, subject.encode(number, x)))
            out = subject.write(number, running.upto(number, x.shape[:-1]), x)
            if number + 1 == len(subject.sites):
                running.clear()
            return out

        return put

    return at


def permuted(subject: Subject, seed: int) -> Change:
    """A decoder that was never fitted: the codes are those of the encoders, the rows those of other latents."""
    made = torch.Generator().manual_seed(seed)
    orders, norms = subject.orders(made), subject.norms()
    return lambda number, codes: subject.permuted(number, codes, orders[number], norms[number])


def selected(subject: Subject, latents: Sequence[Tensor]) -> Change:
    """Some latents alone, those of `latents` [F] bool of each layer."""
    return lambda number, codes: subject.kept(codes, latents[number])


@dataclass(frozen=True)
class _Read:
    """What a layer has read: rows [..., d_in]."""

    rows: Tensor

    @property
    def shape(self) -> torch.Size:
        """The tokens that it is of."""
        return self.rows.shape[:-1]


def across_layers(probes: Sequence[AffineProbe], told: Sequence[AffineProbe] | None) -> Callable[[int], Put]:
    """Of each layer: an affine map from what all layers so far have read in this pass, side by side.

    told: of the layers before, what `telling` makes of it; None: all of it.
    """
    running = RunningCodes[_Read](range(len(probes)))

    def at(number: int) -> Put:
        def put(x: Tensor, y: Tensor) -> Tensor:
            probe = probes[number]
            own = x.to(probe.W_dec.device, probe.W_dec.dtype)
            running.put(number, _Read(own if told is None else telling(told[number], own)))
            before = [one.rows for one in running.upto(number, x.shape[:-1])[:-1] if one is not None]
            out: Tensor = probe(torch.cat([*(one.to(own.device) for one in before), own], -1))
            if number + 1 == len(probes):
                running.clear()
            return out

        return put

    return at


def of_clean_reads(
    run: str, probes: Sequence[AffineProbe], told: Sequence[AffineProbe] | None, reads: Sequence[Tensor]
) -> Callable[[int], Put]:
    """Of each layer: an affine map of what was read in the clean pass, at that layer, at all so far, or at all of them.

    reads: [..., d_in] of each layer. told: as of `across_layers`.
    """

    def at(number: int) -> Put:
        probe = probes[number]
        last = len(reads) if run == "affine_shared" else number + 1
        first = number if run in ("affine", "affine_full") else 0

        def put(x: Tensor, y: Tensor) -> Tensor:
            seen = [one.to(probe.W_dec.device, probe.W_dec.dtype) for one in reads[first:last]]
            if run == "affine_across" and told is not None:
                before = zip(told, seen[:-1], strict=False)
                seen[:-1] = [telling(one.to(x_before.device), x_before) for one, x_before in before]
            out: Tensor = probe(torch.cat(seen, -1))
            return out

        return put

    return at
