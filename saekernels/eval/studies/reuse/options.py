"""How reuse is measured: which parts, lists of which lengths, at which positions; checked before the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saekernels.crosslayer.crosscoder import Crosscoder
from saekernels.crosslayer.site import LayerSite
from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.errors import InputError
from saekernels.sae.activations import GroupMax
from saekernels.sae.module import SAE
from saekernels.splice.leave import Leave

PARTS = ("sharing", "slices", "links", "transfer")
_FRACTIONS = (32, 8, 2)


@dataclass(frozen=True)
class Options:
    """How reuse is measured.

    parts: of PARTS; latents: how many of a domain's latents a restricted dictionary may hold, None for a 32nd, an 8th
    and half of the dictionary; removed: how many latents are truly removed, to check the approximation; rule: which
    positions are left as they are; wanted: tokens that count, None for all.
    """

    parts: Sequence[str] = PARTS
    latents: Sequence[int] | None = None
    removed: int = 12
    rule: Leave = field(default_factory=Leave)
    wanted: int | None = None
    batch_size: int = 8
    seed: int = 0

    def sizes(self, n_latents: int) -> list[int]:
        """Ascending: the lengths of lists for so many latents, none where the part is not asked for."""
        if "transfer" not in self.parts:
            return []
        return sorted(set(self.latents or [max(1, n_latents // part) for part in _FRACTIONS]))


def check_options(options: Options, saes: Mapping[str, Any] | CrossLayerTranscoder) -> None:
    """InputError unless the options are in range and every SAE can be restricted."""
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown or not options.parts:
        raise InputError(f"parts: got {', '.join(unknown) or 'none'}, need some of {', '.join(PARTS)}")
    if isinstance(saes, CrossLayerTranscoder):
        if "links" in options.parts and saes.k_across is not None:
            raise InputError(f"parts: links needs codes of single layers, and TopK(k={saes.k_across}) is of all")
        layers = [saes.source(number) for number in range(saes.n_layers)]
        _check_sizes(options, "clt", sum(layer.n_latents for layer in layers))
        saes = {f"layer {number}": layer for number, layer in enumerate(layers)}
    else:
        for entry, sae in saes.items():
            if not isinstance(sae, SAE):
                also = "; its latents write at several layers, so none can be left out at one" if _spans(sae) else ""
                raise InputError(f"sae: {entry} is {type(sae).__name__}, need a saekernels.SAE{also}")
            _check_sizes(options, entry, sae.n_latents)
    for entry, sae in saes.items():
        if "transfer" in options.parts and isinstance(sae.activation, GroupMax):
            raise InputError(f"parts: transfer selects among latents, which the groups of {entry} do not allow")


def _check_sizes(options: Options, entry: str, n_latents: int) -> None:
    wrong = [size for size in options.sizes(n_latents) if not 1 <= size <= n_latents]
    if wrong:
        raise InputError(f"latents: {entry} has {n_latents}, need 1 to as many, got {wrong[0]}")


def _spans(given: Any) -> bool:
    return isinstance(given, CrossLayerTranscoder | LayerSite | Crosscoder)
