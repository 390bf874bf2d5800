"""A cross-layer transcoder as one dictionary: all its layers are spliced in together, with codes of the clean pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from saekernels.crosslayer.across import keep_largest
from saekernels.crosslayer.site import LayerSite, layer_sites
from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.errors import InputError
from saekernels.eval.passes.head_kinds import Together
from saekernels.eval.passes.layer_reuse import no_reuse
from saekernels.eval.studies.reuse.alone import slopes, wide_like
from saekernels.eval.studies.reuse.lists import WHOLE, Run
from saekernels.eval.studies.reuse.use import Found
from saekernels.eval.studies.site_passes import Passes, Planted, Seen
from saekernels.eval.text.batches import Batch
from saekernels.ops import LinearCeKl
from saekernels.sae.codes import Codes
from saekernels.sae.probes import AffineProbe
from saekernels.sae.restricted import restricted
from saekernels.splice.context import splice
from saekernels.splice.sites import has_two_ends

NAME = "clt"


def stands_of(clt: CrossLayerTranscoder, sites: Sequence[str] | None) -> dict[str, LayerSite]:
    """Site -> what has its widths and encodes; nothing of these is put in. InputError where no sites are known."""
    try:
        return layer_sites(clt, sites, codes=[None] * clt.n_layers)
    except ValueError as error:
        raise InputError(str(error) if str(error).startswith("sites: ") else f"clt: {error}") from error


class Jointly:
    """All layers of a cross-layer transcoder, teacher-forced: what a latent does, it does at every layer it writes to.

    Codes are those of the clean pass, so that a removal is of this latent alone, and not of what later layers would
    read without it. Latents are numbered one layer after another.

    Attributes: as of `Alone`, of all layers; begins: the number of each layer's first latent, and of all.
    """

    def __init__(self, passes: Passes, clt: CrossLayerTranscoder) -> None:
        passes.reuse = no_reuse("all layers are replaced together")
        self.passes, self.clt, self.name = passes, clt, NAME
        self.encoders: list[Any] = [clt.source(number) for number in range(clt.n_layers)]
        self.architecture = next(iter(passes.saes.values())).architecture
        self.sites = tuple(passes.saes)
        self.begins = list(accumulate((one.n_latents for one in self.encoders), initial=0))
        self.widths = [(clt.d_in, clt.d_out if has_two_ends(site) else None) for site in self.sites]

    def effects(self, batch: Batch, looked: Mapping[str, Seen], clean: Tensor) -> list[Found]:
        """As `Alone.effects`, by layer, of one pass and its gradients."""
        seen = [looked[site] for site in self.sites]
        own = self._encode(seen)
        with torch.enable_grad():
            values = [codes.values.detach().requires_grad_() for codes in own]
            graded = [replace(codes, values=value) for codes, value in zip(own, values, strict=True)]
            hidden = self._pass(batch, seen, self._forced(graded))
            losses = self.passes.head.compare(clean, hidden, batch.targets).ce_q
            found = slopes(losses, values, self.name)
        made = zip(seen, own, values, found, strict=True)
        return [Found(one, codes, -(value.detach() * slope)) for one, codes, value, slope in made]

    def losses(
        self, batch: Batch, looked: Mapping[str, Seen], clean: Tensor, runs: Mapping[Run, Any]
    ) -> tuple[Tensor, dict[Run, Tensor]]:
        """As `Alone.losses`; a list holds latents of all layers, or a probe for each."""
        seen = [looked[site] for site in self.sites]
        whole = self._encode(seen)
        found: dict[Run, LinearCeKl] = {}
        together = Together(self.passes.head, clean, batch.targets, found.__setitem__)
        for run, held in {WHOLE: None, **runs}.items():
            if isinstance(held, list):
                stands: Mapping[str, Any] = self._probes(held, seen)
            elif held is not None:
                stands = self._forced(self._restricted(held, seen))
            elif run.kind == "none":
                stands = self._forced([None] * len(seen))
            else:
                codes = _without(whole, self.begins, run.size) if run.kind == "removed" else whole
                if run != WHOLE and codes is whole:
                    continue
                stands = self._forced(codes)
            together.add(run, self._pass(batch, seen, stands))
        together.flush()
        return found[WHOLE].ce_p, {run: found.get(run, found[WHOLE]).ce_q for run in (WHOLE, *runs)}

    def _encode(self, seen: Sequence[Seen]) -> list[Codes]:
        return self.clt.encode([one.x.to(own.W_dec) for one, own in zip(seen, self.encoders, strict=True)])

    def _restricted(self, latents: Tensor, seen: Sequence[Seen]) -> list[Codes | None]:
        """Codes of encoders that have these latents alone; None of a layer that has none of them."""
        found: dict[int, Codes] = {}
        for number, (encoder, begin) in enumerate(zip(self.encoders, self.begins, strict=False)):
            end = begin + encoder.n_latents
            own = latents[(latents >= begin) & (latents < end)] - begin
            if len(own):
                codes = restricted(encoder, own).encode(seen[number].x.to(encoder.W_dec))
                at = own.to(codes.indices.device)[codes.indices.long()]
                found[number] = replace(codes, indices=at.to(codes.indices.dtype), n_latents=encoder.n_latents)
        if self.clt.k_across is not None:
            found = dict(zip(found, keep_largest(list(found.values()), self.clt.k_across), strict=True))
        return [found.get(number) for number in range(len(self.encoders))]

    def _forced(self, codes: Sequence[Codes | None]) -> Mapping[str, Any]:
        return layer_sites(self.clt, self.sites, codes=codes)

    def _probes(self, held: Sequence[AffineProbe], seen: Sequence[Seen]) -> Mapping[str, Any]:
        """What directions give for what the clean pass reads, at every site."""
        found = {}
        for site, probe, one in zip(self.sites, held, seen, strict=True):
            values = probe.forward_with_codes(one.x.to(probe.W_dec))[0]
            found[site] = Planted(self.passes.saes[site], wide_like(values, one))
        return found

    def _pass(self, batch: Batch, seen: Sequence[Seen], stands: Mapping[str, Any]) -> Tensor:
        """Final states [n, d] at the batch's rows with all sites replaced."""
        kept = {
            site: ~one.touched.reshape(*batch.ids.shape, -1)[..., 0] for site, one in zip(self.sites, seen, strict=True)
        }
        self.passes.made += 1
        with splice(self.passes.model, stands, untouched=kept):
            return self.passes.head.hidden(batch.ids.to(self.passes.device), batch.rows)


def _without(whole: list[Codes], begins: Sequence[int], latent: int) -> list[Codes]:
    """The codes without one latent; the same list if it is nowhere active."""
    number = next(at for at in range(len(whole)) if begins[at] <= latent < begins[at + 1])
    codes = whole[number]
    gone = (codes.indices == latent - begins[number]) & (codes.values != 0)
    if not bool(gone.any()):
        return whole
    return [*whole[:number], replace(codes, values=codes.values.masked_fill(gone, 0)), *whole[number + 1 :]]
