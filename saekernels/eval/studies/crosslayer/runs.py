"""The runs of a replaced model: what stands at its layers in each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from saekernels.eval.studies.crosslayer.accounting import equal_ranks
from saekernels.eval.studies.crosslayer.fits import Fits
from saekernels.eval.studies.crosslayer.puts import Put, across_layers, changed, permuted, selected
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.sae.codes import Codes
from saekernels.sae.probes import AffineProbe
from saekernels.splice.context import splice

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
    "beside": "the other dictionary, all its layers replaced",
}
"""Run -> what it is, in the order in which they are shown. Beside these: "first_N": joint, only the first N layers
replaced; "without_N": joint, the codes of layer N switched off; "RUN@DOMAIN" for those of NARROW."""
NARROW = {
    "joint": "joint; only latents that are active somewhere in the half of {domain} that is fitted on",
    "affine": "affine, fitted on {domain} alone",
    "affine_across": "affine_across, fitted on {domain} alone",
}
"""Run -> the same, fitted or selected on one domain."""


@dataclass(frozen=True)
class Stand:
    """What goes in at the layers: arguments of `splice`."""

    sites: Mapping[str, Any]
    replace: Any = "sae"
    means: Mapping[str, Tensor] | None = None
    error_term: bool = False


def names_of(
    subject: Subject, beside: Subject | None, affine: bool, together: bool, domains: Sequence[str], sources: bool
) -> list[str]:
    """The runs that there are: of MEANINGS, "first_N" and "without_N" where `sources` asks for them, "RUN@DOMAIN".

    affine, together: whether maps are fitted, and from moments of all layers together, without which those across
    layers are fitted on everything alone; domains: that something is fitted or selected on alone.
    """
    several = subject.across and len(subject.sites) > 1
    lacking = {
        "own": several,
        "cross": several,
        "skip": subject.has_skip,
        "affine": affine,
        "affine_full": affine,
        "affine_across": affine,
        "beside": beside is not None,
    }
    made = [name for name in MEANINGS if lacking.get(name, True)]
    if sources:
        made += [f"first_{count}" for count in subject.layers[1:]]
        made += [f"without_{number}" for number in subject.layers if subject.across]
    narrow = [run for run in NARROW if run in made and (together or run != "affine_across")]
    return [*made, *(f"{run}@{domain}" for domain in domains for run in narrow)]


def domain_of(name: str) -> tuple[str, str | None]:
    """("affine", "prose") of the run "affine@prose"; (its name, None) of one that has seen every domain."""
    run, mark, domain = name.partition("@")
    return run, domain if mark else None


def meaning(name: str, subject: Subject) -> str:
    """A run in a sentence."""
    run, domain = domain_of(name)
    if domain is not None:
        return NARROW[run].format(domain=domain)
    if name in MEANINGS:
        return MEANINGS[name]
    kind, number = name.split("_")
    if kind == "first":
        return f"joint; only the first {number} of the layers replaced, up to {subject.sites[int(number) - 1]}"
    return f"joint; the codes of layer {number}, at {subject.sites[int(number)]}, switched off"


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
            "permuted": self._functions(changed(subject, permuted(subject, seed))),
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
        if beside is not None:
            self._stands["beside"] = Stand(beside.stands())
        for name in names:
            run, domain = domain_of(name)
            if run.startswith("affine"):
                self._stands[name] = self._affine(run, fits, domain, ranks[name])
            elif domain is not None:
                self._stands[name] = self._functions(changed(subject, selected(subject, fits.fired[fits.part(domain)])))

    def _affine(self, run: str, fits: Fits, domain: str | None, ranks: Sequence[int]) -> Stand:
        across = run == "affine_across"
        probes = self._placed(fits.maps(ranks, domain, across))
        if across:
            told = None if fits.earlier is None else self._placed(fits.earlier.told)
            return self._functions(across_layers(probes, told))
        return Stand(dict(zip(self.subject.sites, probes, strict=True)))

    def _placed(self, maps: Sequence[AffineProbe]) -> list[AffineProbe]:
        return [one.to(device) for one, device in zip(maps, self.subject.devices, strict=True)]

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
