"""Cross-layer transcoders: every layer's codes write at that layer and at all later ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from saekernels.crosslayer.across import keep_largest
from saekernels.crosslayer.source import SourceLayer
from saekernels.crosslayer.sums import TargetSums
from saekernels.ops import _check
from saekernels.sae.activations import Activation, TopK
from saekernels.sae.cards.modules import each, module_card
from saekernels.sae.codes import Codes
from saekernels.sae.metadata import Metadata

PARTS = ("all", "own", "cross")
One = TypeVar("One")


class CrossLayerTranscoder(nn.Module):
    """A cross-layer transcoder (CLT), or a weakly causal crosscoder: one maths (Ameisen et al. 2025; Lindsey 2024).

    With x_s what is read at layer s, codes_s = activation(x_s @ W_enc_s.T + b_enc_s), and what is written at layer t is
    the sum over s <= t of codes_s @ W_dec_{s->t}, plus b_dec_t, plus x_t @ W_skip_t.T where there is a skip connection.

    Args:
        d_in: width of what is read.
        n_latents: F, of each layer; or one number per layer.
        n_layers: L. They are the layers that it reads and writes, not necessarily all of a model.
        activation: as of `SAE`, for each layer by itself. Only such an activation can run in a forward pass.
        across_layers: the activation, a TopK(k), keeps the k largest of all layers of a token together (after the ReLU;
            of equal ones those of earlier layers). Codes of the first layer then hang on what the last one reads:
            `encode` gives them, and they can be put in at layers, but not in the pass that they are of.
        d_out: width of what is written; d_in if None.
        pre_bias: "none" or "separate" (a parameter b_pre [d_in] of each layer).
        rescale_by_decoder_norm: as of `SAE`, by the norm of a latent's rows to all its targets, concatenated.
        skip: whether each layer has a W_skip [d_out, d_in].

    Attributes:
        sources: L `SourceLayer`s: W_enc [F, d_in], W_dec [F, (L - s) * d_out], b_enc [F], threshold, b_pre.
        b_dec, W_skip: of each target layer; W_skip is None without a skip connection.
        sites: where each layer reads and writes, as sites of `saekernels.splice`, if its files said so, else None.
        metadata: what the files said beside (`Metadata`), or None.

    Raises ValueError, TypeError for sizes and options, as `SAE`.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int | Sequence[int],
        n_layers: int,
        activation: Activation | Sequence[Activation],
        *,
        d_out: int | None = None,
        pre_bias: str = "none",
        rescale_by_decoder_norm: bool = False,
        skip: bool = False,
        across_layers: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        layers = _check.integer(n_layers)
        if layers is None or layers < 1:
            raise ValueError(f"n_layers: got {n_layers!r:.40}, need an int of at least 1")
        if pre_bias not in ("none", "separate"):
            raise ValueError(f"pre_bias: got {pre_bias!r}, need 'none' or 'separate'")
        self.d_in, self.d_out, self.n_layers = d_in, d_in if d_out is None else d_out, n_layers
        sizes = _per_layer("n_latents", n_latents, n_layers)
        self.k_across: int | None = None
        if across_layers:
            self.k_across = k = _k_of(activation, sum(sizes))
            # What is among the k largest of all is among the k largest of its layer.
            activation = [TopK(min(k, size)) for size in sizes]
        activations: list[Activation] = _per_layer("activation", activation, n_layers)
        self.sources = nn.ModuleList(
            SourceLayer(
                d_in,
                sizes[s],
                activations[s],
                targets=n_layers - s,
                d_target=self.d_out,
                pre_bias=pre_bias,
                rescale_by_decoder_norm=rescale_by_decoder_norm,
                dtype=dtype,
                device=device,
            )
            for s in range(n_layers)
        )

        def zeros(*shape: int) -> nn.ParameterList:
            made = (nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)) for _ in range(n_layers))
            return nn.ParameterList(made)

        self.b_dec = zeros(self.d_out)
        self.W_skip = zeros(self.d_out, d_in) if skip else None
        self.sites: tuple[str, ...] | None = None
        self.metadata: Metadata | None = None

    def source(self, layer: int) -> SourceLayer:
        """The encoder and the decoders of one layer."""
        return cast(SourceLayer, self.sources[layer])

    @property
    def parameters_per_layer(self) -> list[int]:
        """How many numbers each layer's encoder, decoders, biases and skip connection hold."""
        own = [sum(p.numel() for p in source.parameters()) + self.b_dec[s].numel() for s, source in self._numbered()]
        skips = [0] * self.n_layers if self.W_skip is None else [one.numel() for one in self.W_skip]
        return [a + b for a, b in zip(own, skips, strict=True)]

    def _numbered(self) -> list[tuple[int, SourceLayer]]:
        return [(s, self.source(s)) for s in range(self.n_layers)]

    def encode(self, xs: Sequence[Tensor]) -> list[Codes]:
        """Codes of every layer, of what each reads [..., d_in]."""
        if len(xs) != self.n_layers:
            raise ValueError(f"xs: got {len(xs)} tensors, need one for each of {self.n_layers} layers")
        made = [source.encode(x) for (_, source), x in zip(self._numbered(), xs, strict=True)]
        return made if self.k_across is None else keep_largest(made, self.k_across)

    def decode(self, target: int, codes: Sequence[Codes | None], part: str = "all") -> Tensor:
        """What the codes of layers 0 .. target write at layer `target`: [..., d_out], the skip connection not added.

        Summed in the order of the layers, in at least float32, and rounded once to the weights' dtype.

        Args:
            codes: of each layer up to the target at least; None for a layer that is switched off.
            part: "all", "own" (what the target's own codes write) or "cross" (what those of earlier layers write).
                b_dec is in each of them.

        Raises ValueError for a layer that is not there, another part, or codes whose tokens differ.
        """
        if not 0 <= target < self.n_layers or len(codes) <= target:
            raise ValueError(f"target: got {target} with codes of {len(codes)} of {self.n_layers} layers")
        if part not in PARTS:
            raise ValueError(f"part: got {part!r}, need one of {', '.join(PARTS)}")
        first = next((one for one in codes[: target + 1] if one is not None), None)
        if first is None:
            raise ValueError(f"codes: got none for any layer up to {target}, need those of one at least")
        own = codes[target]
        wanted = {"all": codes[: target + 1], "own": [*[None] * target, own], "cross": [*codes[:target], None]}[part]
        if all(one is None for one in wanted):
            return self.b_dec[target].expand(*first.shape, self.d_out).clone()
        return TargetSums(self.sources, self.b_dec).at(target, wanted, target)

    def decode_all(self, codes: Sequence[Codes]) -> list[Tensor]:
        """`decode` at every layer, with the same bits: each layer's codes are decoded once, to all its targets.

        Memory: beside what is returned, sums of no more than 8 MiB (`saekernels.crosslayer.sums`),
        with gradients of all layers; as much again while a layer's are added.

        Raises ValueError for codes of another number of layers, or of tokens that differ.
        """
        if len(codes) != self.n_layers:
            raise ValueError(f"codes: got those of {len(codes)} layers, need {self.n_layers}")
        sums = TargetSums(self.sources, self.b_dec)
        return [sums.at(target, codes, self.n_layers - 1) for target in range(self.n_layers)]

    def skipped(self, target: int, x: Tensor) -> Tensor | None:
        """[..., d_out]: what the skip connection of a layer adds for x [..., d_in]; None where there is none."""
        if self.W_skip is None:
            return None
        W_skip = self.W_skip[target]
        return nn.functional.linear(x.to(W_skip.dtype), W_skip)

    def forward(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """What is written at every layer [..., d_out], of what is read at each [..., d_in], in the dtype of that."""
        written = []
        for target, (x, out) in enumerate(zip(xs, self.decode_all(self.encode(xs)), strict=True)):
            skipped = self.skipped(target, x)
            written.append((out if skipped is None else out + skipped).to(x.dtype))
        return written

    def extra_repr(self) -> str:
        """What repr() shows between the brackets."""
        skip = ", skip=True" if self.W_skip is not None else ""
        across = "" if self.k_across is None else f", TopK(k={self.k_across}) across layers"
        return f"n_layers={self.n_layers}, d_in={self.d_in}, d_out={self.d_out}{across}{skip}"

    def _repr_html_(self) -> str:
        facts = {
            "n_layers": self.n_layers,
            "d_in": self.d_in,
            "d_out": self.d_out,
            "n_latents of a layer": each(source.n_latents for _, source in self._numbered()),
            "activation": each(source.activation for _, source in self._numbered()),
            "across layers": None if self.k_across is None else f"TopK(k={self.k_across})",
            "skip": self.W_skip is not None or None,
        }
        return module_card(self, facts, self.metadata, self.sites)


def _k_of(activation: object, latents: int) -> int:
    if not isinstance(activation, TopK) or not activation.relu:
        raise ValueError(f"activation: got {activation!r:.60}, need one TopK(k) where across_layers=True")
    if activation.k > latents:
        raise ValueError(f"activation: got k = {activation.k}, need at most n_latents = {latents} of all layers")
    return activation.k


def _per_layer(name: str, given: One | Sequence[One], n_layers: int) -> list[One]:
    if not isinstance(given, Sequence):
        return [given] * n_layers
    if len(given) != n_layers:
        raise ValueError(f"{name}: got {len(given)} of them, need one for each of {n_layers} layers")
    return list(given)
