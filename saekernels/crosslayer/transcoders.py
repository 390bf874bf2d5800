"""Transcoders of several layers, each of which reads and writes at its own: sites do not know of one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from saekernels.sae.cards.modules import each, module_card
from saekernels.sae.metadata import Metadata
from saekernels.sae.module import SAE


class TranscoderSet(nn.Module):
    """A per-layer transcoder (PLT) set: one transcoder for each layer, as circuit-tracer's folders hold them.

    Args:
        transcoders: of each layer, in the order of the layers.
        sites: where each reads and writes, as sites of `saekernels.splice`, if the files said so, else None.
        metadata: what the files said of all of them, or None. That of each is its own.

    Raises ValueError for no transcoder, and for another number of sites.
    """

    def __init__(
        self, transcoders: Sequence[SAE], sites: Sequence[str] | None = None, metadata: Metadata | None = None
    ) -> None:
        super().__init__()
        if not transcoders or (sites is not None and len(sites) != len(transcoders)):
            got = "none" if sites is None else f"{len(sites)} sites for {len(transcoders)} of them"
            raise ValueError(f"transcoders: got {got}, need at least one, and a site for each")
        self.transcoders = nn.ModuleList(transcoders)
        self.sites = None if sites is None else tuple(sites)
        self.metadata = metadata

    @property
    def n_layers(self) -> int:
        """How many transcoders there are."""
        return len(self.transcoders)

    def transcoder(self, layer: int) -> SAE:
        """The transcoder of one layer."""
        return cast(SAE, self.transcoders[layer])

    def at_sites(self, sites: Sequence[str] | None = None) -> dict[str, SAE]:
        """Site -> transcoder, for `splice` and `evaluate`; sites: of each layer, those of the files if None.

        Raises ValueError where no sites are known, and unless there is one for each layer, all different.
        """
        names = sites_of(sites, self.sites, self.n_layers)
        return {name: self.transcoder(layer) for layer, name in enumerate(names)}

    def _repr_html_(self) -> str:
        all_of_them = [self.transcoder(layer) for layer in range(self.n_layers)]
        facts = {
            "n_layers": self.n_layers,
            "n_latents of a layer": each(one.n_latents for one in all_of_them),
            "activation": each(one.activation for one in all_of_them),
        }
        return module_card(self, facts, self.metadata, self.sites)


def sites_of(given: Sequence[str] | None, from_files: Sequence[str] | None, n_layers: int) -> tuple[str, ...]:
    """Where each layer reads and writes: as given, or as the files say.

    Raises ValueError where no sites are known, and unless there is one for each layer, all different.
    """
    names = from_files if given is None else tuple(given)
    if names is None:
        raise ValueError("sites: the files do not say where layers are read and written; give one for each layer")
    if len(names) != n_layers or len(set(names)) != n_layers:
        raise ValueError(f"sites: got {list(names)!r:.200}, need one for each of {n_layers} layers, all different")
    return tuple(names)
