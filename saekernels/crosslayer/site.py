"""What stands in an SAE's place at one layer's site, so that a splice runs a cross-layer dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.crosslayer.running import RunningSums
from saekernels.crosslayer.sums import TargetSums
from saekernels.crosslayer.transcoder import PARTS, CrossLayerTranscoder
from saekernels.crosslayer.transcoders import sites_of
from saekernels.ops import _check
from saekernels.sae.activations import Activation
from saekernels.sae.codes import Codes
from saekernels.sae.edits import Edit, check_edits, edit_codes
from saekernels.sae.metadata import Metadata


class LayerSite(nn.Module):
    """One layer of a `CrossLayerTranscoder` at its site of a model: `splice` and `evaluate` take it for an SAE.

    It reads what the layer reads, keeps the codes for later layers of the pass, and puts in what the codes of all
    layers so far write here. Made by `layer_sites`; only those made together know each other's codes.

    Attributes:
        layer: which; needed: layers whose codes count in a pass.
        before: site -> `LayerSite` of the layers whose codes it needs beside its own.
        given: codes of every layer that take the place of those that the pass would give, or None.
        error: [..., d_out], added to what is put in, or None.
    """

    def __init__(self, transcoder: CrossLayerTranscoder, layer: int, running: RunningSums, part: str) -> None:
        super().__init__()
        self.source = transcoder.source(layer)
        self.target_bias = transcoder.b_dec[layer]
        self.W_skip = None if transcoder.W_skip is None else transcoder.W_skip[layer]
        # Not a part of this module: a digest or a copy of one site would have all layers in it.
        self._whole = (transcoder,)
        self.layer, self.part, self.running, self.needed = layer, part, running, running.needed
        self.edits: tuple[Edit, ...] = ()
        self.before: Mapping[str, LayerSite] = {}
        self.given: Sequence[Codes | None] | None = None
        self.error: Tensor | None = None
        self.metadata: Metadata | None = transcoder.metadata

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return self._whole[0].d_in

    @property
    def d_out(self) -> int:
        """Width of what is put in."""
        return self._whole[0].d_out

    @property
    def n_latents(self) -> int:
        """F of this layer."""
        return self.source.n_latents

    @property
    def activation(self) -> Activation:
        """That of this layer."""
        return self.source.activation

    @property
    def architecture(self) -> str:
        """That this is a layer of a cross-layer transcoder, and its activation's name."""
        return f"clt-{self.source.architecture}"

    @property
    def W_dec(self) -> Tensor:
        """[F, targets * d_out]: this layer's decoders to itself and to all later layers."""
        return self.source.W_dec

    @property
    def reads(self) -> bool:
        """Whether this layer's codes count in this pass: it is not switched off, and they were not given."""
        return self.layer in self.needed and self.given is None

    def encode(self, x: Tensor) -> Codes:
        """This layer's codes of x [..., d_in], edited; nothing is kept."""
        return edit_codes(self.source.encode(x), self.edits)

    def read(self, x: Tensor) -> Codes:
        """The codes of x [..., d_in], kept for this pass."""
        codes = self.encode(x)
        self.running.put(self.layer, codes)
        return codes

    def forward_with_codes(self, x: Tensor) -> tuple[Tensor, Codes | None]:
        """(what is put in for x [..., d_in], this layer's codes behind it; None where it is switched off)."""
        whole, shape = self._whole[0], x.shape[:-1]
        codes: Sequence[Codes | None]
        if self.given is not None:
            codes = self.given
            own = codes[self.layer]
        else:
            own = self.read(x) if self.reads else None
            codes = self.running.upto(self.layer, shape)
        if any(one is not None for one in codes[: self.layer + 1]):
            # With gradients a block may be computed again, out of order: nothing is summed ahead then.
            ahead = self.part == "all" and not torch.is_grad_enabled()
            out = (
                self.running.sums.at(self.layer, codes, self.running.last)
                if ahead
                else whole.decode(self.layer, codes, self.part)
            )
        else:
            out = self.target_bias.expand(*shape, self.d_out).clone()
        skipped = whole.skipped(self.layer, x)
        out = out if skipped is None else out + skipped
        if self.error is not None:
            if self.error.shape != out.shape:
                raise ValueError(f"errors: got {list(self.error.shape)} at layer {self.layer}, need {list(out.shape)}")
            out = out.to(torch.promote_types(out.dtype, self.error.dtype)) + self.error
        return out if self.error is not None else out.to(x.dtype), own

    def forward(self, x: Tensor) -> Tensor:
        """What is put in for x [..., d_in]: [..., d_out]."""
        return self.forward_with_codes(x)[0]

    def extra_repr(self) -> str:
        """What repr() shows between the brackets."""
        return f"layer={self.layer}, part={self.part!r}"


def layer_sites(
    transcoder: CrossLayerTranscoder,
    sites: Sequence[str] | None = None,
    *,
    sources: Sequence[int] | None = None,
    part: str = "all",
    edits: Mapping[int, Sequence[Edit]] | None = None,
    codes: Sequence[Codes | None] | None = None,
    errors: Mapping[int, Tensor] | None = None,
) -> dict[str, LayerSite]:
    """Site -> what stands there, for `splice` and `evaluate`: the transcoder in a running model.

    All of them together replace the model's layers jointly: each reads what the model, replaced so far, gives it. Some
    of them replace those layers alone; the others' codes are read without replacing anything there.

    Args:
        sites: where each layer reads and writes, "READ -> WRITE" as in `splice`; those of the files if None.
        sources: layers whose codes count; the others are switched off, and read nothing. All, if None.
        part: "all" codes so far, "own" (only those of the layer itself, as if there were no cross-layer decoders) or
            "cross" (only those of earlier layers).
        edits: layer -> edits of its codes, in order; every layer that they write to sees them.
        codes: of every layer, to be used in place of those that the pass would give, such as those of the clean model
            (teacher-forced: `recorded` makes them); for passes over the same tokens.
        errors: layer -> [..., d_out], added to what is put in there, such as those of the clean model.

    Raises ValueError for a number of sites, layers or a part that do not fit, and where no sites are known.
    """
    given: object = transcoder
    if not isinstance(given, CrossLayerTranscoder):
        what = f"got a {type(given).__name__}, need a CrossLayerTranscoder, whose layers run in one pass"
        raise TypeError(f"transcoder: {what} (what a Crosscoder writes first hangs on its last: `head_sites`)")
    if transcoder.k_across is not None and codes is None:
        raise ValueError(
            f"transcoder: its TopK(k={transcoder.k_across}) chooses over all layers of a token, so that codes of the "
            "first layer hang on what the last reads, and it cannot run in a pass; give codes=, those that its encode "
            "makes of what the clean model reads (teacher-forced)"
        )
    n_layers = transcoder.n_layers
    names = sites_of(sites, transcoder.sites, n_layers)
    if part not in PARTS:
        raise ValueError(f"part: got {part!r}, need one of {', '.join(PARTS)}")
    _check_layers("sources", sources, n_layers)
    _check_layers("edits", edits, n_layers)
    _check_layers("errors", errors, n_layers)
    if codes is not None and len(codes) != n_layers:
        raise ValueError(f"codes: got those of {len(codes)} layers, need {n_layers}")
    if codes is not None and edits:
        raise ValueError("edits: got them beside codes, which are taken as they are; edit those")
    needed = sorted(set(range(n_layers) if sources is None else sources))
    kept = None if codes is None else [one if s in needed else None for s, one in enumerate(codes)]
    running = RunningSums(needed, TargetSums(transcoder.sources, transcoder.b_dec))
    made = {name: LayerSite(transcoder, layer, running, part) for layer, name in enumerate(names)}
    for name, site in made.items():
        site.given = kept
        own = (edits or {}).get(site.layer, ())
        check_edits(own, site.n_latents, site.W_dec.dtype, repr(name))
        site.edits = tuple(own)
        site.error = (errors or {}).get(site.layer)
        site.before = {other: one for other, one in made.items() if one.layer < site.layer and one.reads}
    return made


def _check_layers(argument: str, layers: Sequence[int] | Mapping[int, Any] | None, n_layers: int) -> None:
    for layer in layers or ():
        whole = _check.integer(layer)
        if whole is None or not 0 <= whole < n_layers:
            raise ValueError(f"{argument}: got layer {layer!r}, need one of 0 to {n_layers - 1}")
