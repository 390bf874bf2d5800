"""What replaces several layers together: a cross-layer transcoder, or a set of transcoders, one for each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.crosslayer.site import layer_sites
from saekernels.crosslayer.sums import TargetSums
from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.errors import InputError, InputTypeError, kind_of
from saekernels.eval.store import fingerprints as identity
from saekernels.sae.codes import Codes
from saekernels.sae.module import SAE
from saekernels.splice.sites import has_two_ends


class Subject:
    """Layers in the order in which the model runs them, each with its site, its codes and what these write.

    Args:
        name: the argument that it came by, for errors.
        given: a `CrossLayerTranscoder`, a set of transcoders (`at_sites`), or site -> transcoder (an `SAE`).
        sites: of each layer, where the files do not say them.

    Raises InputError where no sites are known, TypeError for anything else. Crosscoders: heads.py beside this file.
    """

    causal = True
    """Whether it can run in a pass as it reads; else its codes are those of clean passes."""

    def __init__(self, name: str, given: Any, sites: Sequence[str] | None = None) -> None:
        self.across = isinstance(given, CrossLayerTranscoder)
        if self.across:
            self.causal = given.k_across is None
            try:
                self._stands = layer_sites(given, sites, codes=None if self.causal else [None] * given.n_layers)
            except ValueError as error:
                raise refused(name, error) from error
            self.module: nn.Module = given
            self._sums = TargetSums(self._clt.sources, self._clt.b_dec)
        else:
            at_sites = getattr(given, "at_sites", None)
            if callable(at_sites):
                try:
                    given = at_sites(sites)
                except ValueError as error:
                    raise refused(name, error) from error
            elif sites is not None and isinstance(given, Mapping):
                raise InputError(f"sites: got them beside {name}, a mapping from its own sites")
            if not isinstance(given, Mapping) or not given:
                needed = "a CrossLayerTranscoder or a mapping from site to SAE"
                raise InputTypeError(f"{name}: got {kind_of(given)}, need {needed}")
            wrong = next((site for site, sae in given.items() if not isinstance(sae, SAE)), None)
            if wrong is not None:
                raise InputTypeError(f"{name}: {wrong!r} is {kind_of(given[wrong])}, need an SAE")
            self._stands = dict(given)
            self.module = nn.ModuleList(given.values())
        self.name = name
        self.sites = tuple(self._stands)

    @property
    def kind(self) -> str:
        """In words."""
        if not self.across:
            return "transcoders"
        what = "weakly causal crosscoder" if self.same else "cross-layer transcoder"
        return what if self.causal else f"{what} with TopK over all layers"

    @property
    def same(self) -> bool:
        """Whether it writes where it reads, so that the identity is an affine map between the two."""
        return not any(has_two_ends(site) for site in self.sites)

    @property
    def shared(self) -> bool:
        """Whether one code serves all layers."""
        return False

    @property
    def layers(self) -> range:
        """Numbers of the layers."""
        return range(len(self.sites))

    def layer(self, number: int) -> Any:
        """The encoder of one layer, with its widths."""
        return self._clt.source(number) if self.across else self._stands[self.sites[number]]

    def stands(self, **options: Any) -> dict[str, Any]:
        """Site -> what stands there in a joint splice; options as of `layer_sites`."""
        return layer_sites(self._clt, self.sites, **options) if self.across else dict(self._stands)

    def places(self) -> dict[str, Any]:
        """Site -> what has its widths, for passes that put nothing of the dictionary in."""
        return dict(self._stands)

    @property
    def devices(self) -> list[torch.device]:
        """Of each layer."""
        return [self.layer(number).W_dec.device for number in self.layers]

    def widths(self) -> list[tuple[int, int]]:
        """Of each layer what it reads and what it writes."""
        return [(stand.d_in, stand.d_out) for stand in self._stands.values()]

    def targets(self, number: int) -> int:
        """Layers that the codes of this one write at."""
        return len(self.sites) - number if self.across else 1

    def encode(self, number: int, x: Tensor) -> Codes:
        """Codes of what a layer reads [..., d_in]."""
        own = self.layer(number)
        codes: Codes = own.encode(x.to(own.W_dec.device, own.W_dec.dtype))
        return codes

    def encode_all(self, reads: Sequence[Tensor]) -> list[Codes]:
        """Codes of every layer, of what each reads [..., d_in]."""
        if not self.causal:
            return self._clt.encode([x.to(own) for x, own in zip(reads, self._weights, strict=True)])
        return [self.encode(number, x) for number, x in enumerate(reads)]

    def write(self, number: int, codes: Sequence[Codes | None], x: Tensor) -> Tensor:
        """[..., d_out]: what codes of layers 0 .. number write at that layer, and the skip connection of x."""
        own = codes[number]
        assert own is not None
        out = self._sums.at(number, codes, len(self.sites) - 1) if self.across else self.layer(number).decode(own)
        skipped = self.skipped(number, x)
        return out if skipped is None else out + skipped

    def skipped(self, number: int, x: Tensor) -> Tensor | None:
        """[..., d_out]: x @ W_skip.T at a layer; None without a skip connection."""
        if self.across:
            return self._clt.skipped(number, x.to(self.devices[number]))
        W_skip: Tensor | None = self.layer(number).W_skip
        return None if W_skip is None else nn.functional.linear(x.to(W_skip), W_skip)

    def bias(self, number: int) -> Tensor:
        """[d_out] of a layer."""
        bias: Tensor = self._clt.b_dec[number] if self.across else self.layer(number).b_dec
        return bias

    @property
    def has_skip(self) -> bool:
        """Whether each layer has a skip connection."""
        if self.across:
            return self._clt.W_skip is not None
        return all(self.layer(number).W_skip is not None for number in self.layers)

    def permuted(self, number: int, codes: Codes, order: Tensor, norms: Tensor) -> Codes:
        """Codes whose latents write in the directions of others, each with the norm of its own row.

        order [F]: of which latent; norms [F]: of the decoder's rows.
        """
        # Values may be in units of the row's norm, which decoding takes out.
        weigh = not self.layer(number).rescale_by_decoder_norm
        return permuted(codes, order, norms if weigh else None)

    def orders(self, made: torch.Generator) -> list[Tensor]:
        """[F] of each layer, at random: in the direction of which latent each one writes in the permuted run."""
        return [torch.randperm(self.layer(number).n_latents, generator=made) for number in self.layers]

    def norms(self) -> list[Tensor]:
        """[F] of each layer: of its decoder's rows."""
        return [self.layer(number).decoder_norms().detach().float() for number in self.layers]

    def distinct(self, codes: Sequence[Codes | None], touched: Tensor) -> tuple[Tensor, int]:
        """Of codes that serve all layers: which latents are active at any [F] bool, and how many over these tokens."""
        raise NotImplementedError("layers have latents of their own")

    def kept(self, codes: Codes, latents: Tensor) -> Codes:
        """Codes with the latents alone that `latents` [F] bool names."""
        of_these = latents.to(codes.indices.device)[codes.indices.long()]
        return dataclasses.replace(codes, values=torch.where(of_these, codes.values, torch.zeros_like(codes.values)))

    def fingerprints(self) -> dict[str, str]:
        """What it is, in short digests by name."""
        if self.across:
            return {self.name: identity.fingerprint(self.module, settings=True), f"{self.name} sites": str(self.sites)}
        return {f"{self.name} {site}": one for site, one in identity.of_saes(self._stands).items()}

    @property
    def _weights(self) -> list[Tensor]:
        return [self.layer(number).W_dec for number in self.layers]

    @property
    def _clt(self) -> CrossLayerTranscoder:
        assert isinstance(self.module, CrossLayerTranscoder)
        return self.module


def refused(name: str, error: ValueError) -> InputError:
    """What is wrong with a dictionary, or with `sites`, which are an argument beside the one to be replaced."""
    told = str(error)
    return InputError(told if name == "replacement" and told.startswith("sites: ") else f"{name}: {told}")


def permuted(codes: Codes, order: Tensor, norms: Tensor | None) -> Codes:
    """Codes whose latents are others, order [F], with values that keep the norm of what each writes, norms [F]."""
    at = codes.indices.long()
    other = order.to(at.device)[at]
    values = codes.values
    if norms is not None:
        # A row of norm 0 writes nothing, whatever its code.
        ratio = torch.where(norms[other] > 0, norms[at] / norms[other], 0)
        values = (values * ratio).to(values.dtype)
    return dataclasses.replace(codes, values=values, indices=other.to(codes.indices.dtype))
