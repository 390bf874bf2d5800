"""The runs of a replaced model: what stands at its layers in each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.studies.crosslayer.fits import Fits
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.sae.codes import Codes
from saekernels.sae.probes import AffineProbe
from saekernels.splice.context import splice

Put = Callable[[Tensor, Tensor], Tensor]


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
        self._rows = _OtherRows(subject, seed)
        self._maps: dict[str, list[AffineProbe]] = {}
        for name in (name for name in names if name.startswith("affine")):
            inside = True if name.endswith("inside") else None
            shared = name.startswith("affine_shared")
            found = (
                fits.shared_maps(ranks[name][0], inside) if shared else fits.maps(ranks[name], inside, "across" in name)
            )
            self._maps[name] = [one.to(device) for one, device in zip(found, subject.devices, strict=True)]
        if subject.causal:
            self._joint()
        if beside is not None:
            self._stands["beside"] = Stand(beside.stands())

    def _joint(self) -> None:
        """What reads the model, replaced so far."""
        subject, sites = self.subject, self.subject.stands()
        self._stands |= {
            "joint": Stand(sites),
            "error": Stand(sites, error_term=True),
            "permuted": self._functions(_Permuted(subject, self._rows).at),
        }
        if subject.across:
            self._stands |= {part: Stand(subject.stands(part=part)) for part in ("own", "cross")}
            for number in subject.layers:
                kept = [one for one in subject.layers if one != number]
                self._stands[f"without_{number}"] = Stand(subject.stands(sources=kept))
        if subject.has_skip:
            self._stands["skip"] = self._functions(self._skip)
        for name, probes in self._maps.items():
            across = "across" in name
            own = dict(zip(subject.sites, probes, strict=True))
            self._stands[name] = self._functions(_Across(probes).at) if across else Stand(own)

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
            return self._functions(_clean_maps(name, self._maps[name], reads))
        if name == "permuted":
            codes = [None if one is None else self._rows.of(number, one) for number, one in enumerate(codes)]
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


class _OtherRows:
    """A decoder that was never fitted: the codes are those of encoders, the rows those of other latents."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self._subject = subject
        self._orders, self._norms = subject.orders(torch.Generator().manual_seed(seed)), subject.norms()

    def of(self, number: int, codes: Codes) -> Codes:
        """Codes of a layer that write so."""
        return self._subject.permuted(number, codes, self._orders[number], self._norms[number])


class _Permuted:
    """The same in a running model."""

    def __init__(self, subject: Subject, rows: _OtherRows) -> None:
        self._subject, self._rows = subject, rows
        self._codes: list[Codes | None] = []

    def at(self, number: int) -> Put:
        def put(x: Tensor, y: Tensor) -> Tensor:
            self._codes[number:] = [self._rows.of(number, self._subject.encode(number, x))]
            out = self._subject.write(number, self._codes, x)
            if number + 1 == len(self._subject.sites):
                self._codes = []
            return out

        return put


def _clean_maps(name: str, probes: Sequence[AffineProbe], reads: Sequence[Tensor]) -> Callable[[int], Put]:
    """Affine maps of what was read in the clean pass: at the layer itself, at all so far, or at all of them."""

    def at(number: int) -> Put:
        probe = probes[number]
        last = len(reads) if "shared" in name else number + 1
        first = 0 if "shared" in name or "across" in name else number

        def put(x: Tensor, y: Tensor) -> Tensor:
            seen = [one.to(probe.W_dec.device, probe.W_dec.dtype) for one in reads[first:last]]
            return probe(torch.cat(seen, -1))

        return put

    return at


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
