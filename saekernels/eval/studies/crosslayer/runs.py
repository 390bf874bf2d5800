"""The runs of a replaced model: what stands at its layers in each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.studies.crosslayer.accounting import equal_ranks
from saekernels.eval.studies.crosslayer.fits import Fits
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.sae.codes import Codes
from saekernels.sae.probes import AffineProbe
from saekernels.splice.context import splice

Put = Callable[[Tensor, Tensor], Tensor]
MEANINGS = {
    "joint": "all layers replaced; each reads what the model, replaced so far, gives it",
    "teacher_forced": "all layers replaced by what the codes of the clean model write",
    "own": "joint; at each layer only what its own codes write",
    "cross": "joint; at each layer only what the codes of earlier layers write",
    "error": "joint, and what each layer misses of its MLP in the same pass put back: the clean model, to rounding",
    "zero": "nothing is written at any layer",
    "mean": "each layer writes its mean over the fitted half",
    "skip": "each layer writes its bias and its skip connection alone",
    "permuted": "joint; every latent writes in the direction of another one of its layer, with its own norm",
    "affine": "an affine map of each layer's input, of the rank of the mean L0 of the latents that write there",
    "affine_full": "such a map of as many parameters as the replacement's, or of full rank where that is less",
    "affine_across": "an affine map of what all layers so far read, of the same rank as affine",
    "affine_inside": "affine, fitted on one domain alone",
    "affine_across_inside": "affine_across, fitted on one domain alone",
    "beside": "the other dictionary, all its layers replaced",
}
"""Run -> what it is, in the order in which they are shown. "without_N": joint, the codes of layer N switched off."""


@dataclass(frozen=True)
class Stand:
    """What goes in at the layers: arguments of `splice`."""

    sites: Mapping[str, Any]
    replace: Any = "sae"
    means: Mapping[str, Tensor] | None = None
    error_term: bool = False


def names_of(
    subject: Subject, beside: Subject | None, affine: bool, across: bool, domains: bool, sources: bool
) -> list[str]:
    """The runs that there are: of MEANINGS, and "without_N" where `sources` asks for them.

    affine, across: whether maps are fitted, across layers too; domains: whether there are several.
    """
    several = subject.across and len(subject.sites) > 1
    lacking = {
        "own": several,
        "cross": several,
        "skip": subject.has_skip,
        "affine": affine,
        "affine_full": affine,
        "affine_across": across,
        "affine_inside": affine and domains,
        "affine_across_inside": across and domains,
        "beside": beside is not None,
    }
    made = [name for name in MEANINGS if lacking.get(name, True)]
    return [*made, *(f"without_{number}" for number in subject.layers if sources and subject.across)]


def meaning(name: str, subject: Subject) -> str:
    """A run in a sentence."""
    number = name.removeprefix("without_")
    return MEANINGS.get(name) or f"joint; the codes of layer {number}, at {subject.sites[int(number)]}, switched off"


def ranks_of(subject: Subject, fits: Fits, names: Sequence[str]) -> dict[str, list[int]]:
    """Affine run -> rank at each layer: the mean L0 of the layers that write there, on the first text, at least 1."""
    l0, widths = fits.l0, subject.widths()
    matched = []
    for number, (d_in, d_out) in enumerate(widths):
        writers = l0[: number + 1] if subject.across else l0[number : number + 1]
        matched.append(max(1, min(round(sum(writers) / len(writers)), d_in, d_out)))
    wanted = [name for name in names if name.startswith("affine")]
    return {name: equal_ranks(subject) if name == "affine_full" else matched for name in wanted}


class Runs:
    """Makes them.

    Args:
        names: of `names_of`. ranks: run -> rank of the affine map at each layer.
        seed: of the permutations.
    """

    def __init__(
        self,
        subject: Subject,
        beside: Subject | None,
        names: Sequence[str],
        fits: Fits,
        ranks: Mapping[str, Sequence[int]],
        seed: int,
    ) -> None:
        self.subject, self.names = subject, list(names)
        means = dict(zip(subject.sites, fits.means(), strict=True))
        sites = subject.stands()
        self._stands = {
            "joint": Stand(sites),
            "error": Stand(sites, error_term=True),
            "zero": Stand(sites, "zero"),
            "mean": Stand(sites, "mean", means),
            "permuted": self._functions(_Permuted(subject, seed).at),
        }
        if subject.across:
            self._stands |= {part: Stand(subject.stands(part=part)) for part in ("own", "cross")}
            for number in subject.layers:
                kept = [one for one in subject.layers if one != number]
                self._stands[f"without_{number}"] = Stand(subject.stands(sources=kept))
        if subject.has_skip:
            self._stands["skip"] = self._functions(self._skip)
        if beside is not None:
            self._stands["beside"] = Stand(beside.stands())
        for name in (name for name in names if name.startswith("affine")):
            found = fits.maps(ranks[name], True if name.endswith("inside") else None, "across" in name)
            probes = [one.to(device) for one, device in zip(found, subject.devices, strict=True)]
            across = "across" in name
            self._stands[name] = (
                self._functions(_Across(probes).at) if across else Stand(dict(zip(subject.sites, probes, strict=True)))
            )

    def splice(
        self, model: Any, name: str, codes: Sequence[Codes | None], untouched: Any, observer: Any = None
    ) -> contextlib.AbstractContextManager[Any]:
        """The splice of a run; codes: those of the clean pass over the same tokens."""
        stand = self._forced(codes) if name == "teacher_forced" else self._stands[name]
        return splice(
            model,
            stand.sites,
            replace=stand.replace,
            means=stand.means,
            untouched=untouched,
            error_term=stand.error_term,
            observer=observer,
        )

    def _functions(self, at: Callable[[int], Put]) -> Stand:
        return Stand({site: at(number) for number, site in enumerate(self.subject.sites)}, "function")

    def _forced(self, codes: Sequence[Codes | None]) -> Stand:
        if self.subject.across:
            return Stand(self.subject.stands(codes=codes))
        return self._functions(lambda number: lambda x, y: self.subject.write(number, codes, x))

    def _skip(self, number: int) -> Put:
        def put(x: Tensor, y: Tensor) -> Tensor:
            skipped = self.subject.skipped(number, x)
            assert skipped is not None
            return skipped + self.subject.bias(number)

        return put


class _Permuted:
    """A decoder that was never fitted: the codes are those of the encoders, the rows those of other latents."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self._subject = subject
        made = torch.Generator().manual_seed(seed)
        self._orders = [torch.randperm(subject.layer(number).n_latents, generator=made) for number in subject.layers]
        self._norms = [subject.layer(number).decoder_norms().detach().float() for number in subject.layers]
        self._codes: list[Codes | None] = []

    def at(self, number: int) -> Put:
        def put(x: Tensor, y: Tensor) -> Tensor:
            codes = self._subject.encode(number, x)
            self._codes[number:] = [self._subject.permuted(number, codes, self._orders[number], self._norms[number])]
            out = self._subject.write(number, self._codes, x)
            if number + 1 == len(self._subject.sites):
                self._codes = []
            return out

        return put


class _Across:
    """Affine maps from what all layers so far have read in this pass."""

    def __init__(self, probes: Sequence[AffineProbe]) -> None:
        self._probes, self._reads = probes, list[Tensor]()

    def at(self, number: int) -> Put:
        def put(x: Tensor, y: Tensor) -> Tensor:
            probe = self._probes[number]
            self._reads[number:] = [x.to(probe.W_dec.device, probe.W_dec.dtype)]
            out: Tensor = probe(torch.cat([one.to(probe.W_dec.device) for one in self._reads], -1))
            if number + 1 == len(self._probes):
                self._reads.clear()
            return out

        return put
