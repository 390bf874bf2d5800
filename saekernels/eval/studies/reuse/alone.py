"""An SAE that is spliced in alone: what its latents do by gradients, and the losses under each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.eval.passes.head_kinds import Together
from saekernels.eval.passes.plan import site_of
from saekernels.eval.studies.reuse.lists import WHOLE, Run
from saekernels.eval.studies.reuse.use import Found
from saekernels.eval.studies.site_passes import Passes, Seen
from saekernels.eval.text.batches import Batch
from saekernels.ops import LinearCeKl
from saekernels.sae.codes import Codes
from saekernels.sae.restricted import restricted
from saekernels.splice.sites import has_two_ends


class Alone:
    """One entry of a splice.

    Attributes:
        name: of the entry; architecture: of the SAE.
        encoders: the SAE alone; widths: of what it reads, and of what is replaced where that is another.
    """

    def __init__(self, passes: Passes, entry: str) -> None:
        sae = passes.saes[entry]
        self.passes, self.name, self.architecture = passes, entry, sae.architecture
        self.encoders: list[Any] = [sae]
        self.widths = [(sae.d_in, sae.d_out if has_two_ends(site_of(entry)) else None)]

    def effects(self, batch: Batch, looked: Mapping[str, Seen], clean: Tensor) -> list[Found]:
        """The SAE's codes, and -z * dL/dz of each entry, in nats.

        To first order, how much the loss rises without the entry. L is the sum of the cross-entropies of the batch's
        predictions; clean [n, d]: the final states of the model as it is.
        """
        (seen,), (sae,) = looked.values(), self.encoders
        x_hat, codes = sae.forward_with_codes(seen.x.to(sae.W_dec))
        with torch.enable_grad():
            values = codes.values.detach().requires_grad_()
            # 0 with a gradient, so that skip connections and rounding are those of the SAE.
            nothing = sae.decode(replace(codes, values=values)) - sae.decode(codes)
            hidden = self.passes.plant(batch, self.name, seen, wide_like(x_hat, seen) + nothing)
            losses = self.passes.head.compare(clean, hidden, batch.targets).ce_q
            (slope,) = slopes(losses, [values], self.name)
        return [Found(seen, codes, -(values.detach() * slope))]

    def losses(
        self, batch: Batch, looked: Mapping[str, Seen], clean: Tensor, runs: Mapping[Run, Any]
    ) -> tuple[Tensor, dict[Run, Tensor]]:
        """Clean and by run spliced cross-entropies [n]; clean [n, d]: final states of the model as it is.

        runs: latents [m], a list with a probe, or None where kind and size say it all.
        """
        (seen,), (sae,) = looked.values(), self.encoders
        x = seen.x.to(sae.W_dec)
        whole = sae.forward_with_codes(x)
        found: dict[Run, LinearCeKl] = {}
        same: dict[Run, Run] = {}
        together = Together(self.passes.head, clean, batch.targets, found.__setitem__)
        for run, held in {WHOLE: None, **runs}.items():
            if held is not None:
                stands = restricted(sae, held) if isinstance(held, Tensor) else held[0]
                values = stands.forward_with_codes(x.to(stands.W_dec))[0]
            else:
                values = _without(sae, run, *whole)
            if run != WHOLE and values is whole[0]:
                same[run] = WHOLE
                continue
            together.add(run, self.passes.plant(batch, self.name, seen, wide_like(values, seen)))
        together.flush()
        losses = {run: found[same.get(run, run)].ce_q for run in (WHOLE, *runs)}
        return found[WHOLE].ce_p, losses


def slopes(losses: Tensor, values: list[Tensor], name: str) -> tuple[Tensor, ...]:
    """Gradients of the sum of the losses [n]. InputError where the model gives none."""
    if not losses.requires_grad:
        raise InputError(f"model: effects need gradients, and none come back from its loss to the site {name!r}")
    return torch.autograd.grad(losses.sum(), values, materialize_grads=True)


def wide_like(values: Tensor, seen: Seen) -> Tensor:
    """The values in at least fp32 and the precision of what they stand in for."""
    return values.to(torch.promote_types(torch.promote_types(values.dtype, seen.y.dtype), torch.float32))


def _without(sae: Any, run: Run, x_hat: Tensor, codes: Codes) -> Tensor:
    """The output without the latent of a removal, without any, or x_hat itself if that changes nothing."""
    gone = codes.values != 0
    if run.kind == "removed":
        gone &= codes.indices == run.size
    if run == WHOLE or not bool(gone.any()):
        return x_hat
    kept = replace(codes, values=codes.values.masked_fill(gone, 0))
    return x_hat + (sae.decode(kept) - sae.decode(codes))
