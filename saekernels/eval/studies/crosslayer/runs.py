"""The runs of a replaced model: what stands at its layers in each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from saekernels.eval.studies.crosslayer.fits import Fits
from saekernels.eval.studies.crosslayer.names import domain_of
from saekernels.eval.studies.crosslayer.puts import Put, across_layers, changed, of_clean_reads, permuted, selected
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.sae.codes import Codes
from saekernels.sae.probes import AffineProbe
from saekernels.splice.context import splice


@dataclass(frozen=True)
class Stand:
    """What goes in at the layers: arguments of `splice`."""

    sites: Mapping[str, Any]
    replace: Any = "sae"
    means: Mapping[str, Tensor] | None = None
    error_term: bool = False


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
        self._stands = {"zero": Stand(subject.places(), "zero"), "mean": Stand(subject.places(), "mean", means)}
        self._permuted = permuted(subject, seed)
        self._told = None if fits.earlier is None else self._placed(fits.earlier.told)
        self._maps: dict[str, list[AffineProbe]] = {}
        for name in names:
            run, domain = domain_of(name)
            if run == "affine_shared":
                self._maps[name] = self._placed(fits.shared_maps(ranks[name][0], domain))
            elif run.startswith("affine"):
                self._maps[name] = self._placed(fits.maps(ranks[name], domain, run == "affine_across"))
        if subject.causal:
            self._joint(fits)
        if beside is not None:
            self._stands["beside"] = Stand(beside.stands())

    def _placed(self, maps: Sequence[AffineProbe]) -> list[AffineProbe]:
        return [one.to(device) for one, device in zip(maps, self.subject.devices, strict=True)]

    def _joint(self, fits: Fits) -> None:
        """What reads the model, replaced so far."""
        subject, sites = self.subject, self.subject.stands()
        self._stands |= {
            "joint": Stand(sites),
            "error": Stand(sites, error_term=True),
            "permuted": self._functions(changed(subject, self._permuted)),
        }
        for count in subject.layers[1:]:
            self._stands[f"first_{count}"] = Stand(dict(list(sites.items())[:count]))
        if subject.across:
            self._stands |= {part: Stand(subject.stands(part=part)) for part in ("own", "cross")}
            for number in subject.layers:
                kept = [one for one in subject.layers if one != number]
                self._stands[f"without_{number}"] = Stand(subject.stands(sources=kept))
        if subject.has_skip:
            self._stands["skip"] = self._functions(self._skip)
        for name in self.names:
            run, domain = domain_of(name)
            if run == "affine_across":
                self._stands[name] = self._functions(across_layers(self._maps[name], self._told))
            elif name in self._maps:
                self._stands[name] = Stand(dict(zip(subject.sites, self._maps[name], strict=True)))
            elif domain is not None:
                self._stands[name] = self._functions(changed(subject, selected(subject, fits.fired[fits.part(domain)])))

    def splice(
        self,
        model: Any,
        name: str,
        codes: Sequence[Codes | None],
        reads: Sequence[Tensor],
        untouched: Any,
        observer: Any = None,
    ) -> contextlib.AbstractContextManager[Any]:
        """The splice of a run; codes, reads: those of the clean pass over the same tokens."""
        stand = self._stands.get(name) or self._forced(name, codes, reads)
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

    def _forced(self, name: str, codes: Sequence[Codes | None], reads: Sequence[Tensor]) -> Stand:
        """What was made in the clean pass."""
        subject = self.subject
        if name in self._maps:
            return self._functions(of_clean_reads(domain_of(name)[0], self._maps[name], self._told, reads))
        if name == "permuted":
            codes = [None if one is None else self._permuted(number, one) for number, one in enumerate(codes)]
        if subject.causal and not subject.across:
            return self._functions(lambda number: lambda x, y: subject.write(number, codes, x))
        stands = subject.stands(codes=codes)
        if name.startswith("only_"):
            site = subject.sites[int(name.removeprefix("only_"))]
            return Stand({site: stands[site]})
        return Stand(stands, error_term=name == "error")

    def _skip(self, number: int) -> Put:
        def put(x: Tensor, y: Tensor) -> Tensor:
            skipped = self.subject.skipped(number, x)
            assert skipped is not None
            return skipped + self.subject.bias(number)

        return put
