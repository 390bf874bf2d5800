"""Acausal crosscoders: one set of latents that reads and writes several layers, or several models, at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saekernels.crosslayer.code_norms import above_their_floors, check_norms, decoder_norms, folded, head_values
from saekernels.ops import _check, decode, decode_csr, encode_threshold, encode_topk
from saekernels.sae.activations import BatchTopK, JumpReLU, ReLU, TopK
from saekernels.sae.cards.modules import module_card
from saekernels.sae.codes import Codes
from saekernels.sae.entries import positive
from saekernels.sae.metadata import Metadata
from saekernels.sae.module import SAE

HeadActivation = ReLU | TopK | JumpReLU | BatchTopK


class Crosscoder(nn.Module):
    """An acausal crosscoder (Lindsey et al. 2024) of H heads, each a layer or a model.

    With x_h what head h reads, h = sum over heads of x_h @ W_enc_h.T + b_enc, codes = activation(h), and what head h
    writes is codes @ W_dec_h + b_dec_h. It is computed as one product of width H * d.

    A latent is selected by h times a norm n of its decoder rows, and its code is h, not h * n.

    Args:
        d: width of what each head reads and writes.
        n_latents: F.
        n_heads: H.
        activation: ReLU(), TopK(k), JumpReLU() or BatchTopK(k) (as it is at inference).
        norms: what n is, of the rows W_dec_h of a latent: "none" (1), "sum" (of their norms), "concatenated" (the norm
            of all of them as one row), "mixed" (alphas[0] * concatenated + alphas[1] * sum), or "per_head": head h
            selects for itself, by the norm of its own row, so that codes differ from head to head.
        alphas: two numbers of at least 0, for "mixed" alone.
        input_scale: [H] or [H, d], above 0: what is read is multiplied by it, and what is written divided.
        input_mean: [H, d], subtracted before that from what is read, and added in the end to what is written.
        output_scale: [H] or [H, d]: what is written is multiplied by this instead of being divided by `input_scale`.

    Attributes:
        weights: an `SAE` of width H * d that holds W_enc [F, H * d], b_enc [F], W_dec [F, H * d] and b_dec [H * d];
            its own activation is not used.
        threshold: None; [F] (JumpReLU); [] (BatchTopK), or [H] where each head selects for itself. h * n has to be
            above it. Float32 at least; a `to(dtype)` rounds it.
        input_scale, input_mean, output_scale: buffers [H, 1] or [H, d], or None.
        sites: where each head reads and writes, if its files said so, else None; metadata: what they said beside.

    Inputs are computed in the dtype of the weights, and codes are differentiable with respect to them and to the
    encoder; no gradient reaches thresholds and norms. Raises ValueError, TypeError for sizes and options, by name.
    """

    threshold: Tensor | None
    input_scale: Tensor | None
    input_mean: Tensor | None
    output_scale: Tensor | None

    def __init__(
        self,
        d: int,
        n_latents: int,
        n_heads: int,
        activation: HeadActivation,
        *,
        norms: str = "none",
        alphas: tuple[float, float] | None = None,
        input_scale: Tensor | Sequence[float] | None = None,
        input_mean: Tensor | None = None,
        output_scale: Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        heads = _check.integer(n_heads)
        if heads is None or heads < 1:
            raise ValueError(f"n_heads: got {n_heads!r:.40}, need an int of at least 1")
        if not isinstance(activation, ReLU | TopK | JumpReLU | BatchTopK):
            raise ValueError(f"activation: got {activation!r:.60}, need ReLU, TopK, JumpReLU or BatchTopK")
        check_norms(norms, alphas)
        self.weights = SAE(n_heads * d, n_latents, ReLU(), pre_bias="none", dtype=dtype, device=device)
        if isinstance(activation, TopK) and activation.k > n_latents:
            raise ValueError(f"activation: got k = {activation.k}, need at most n_latents = {n_latents}")
        self.d, self.n_latents, self.n_heads = d, n_latents, n_heads
        self.activation, self.norms, self.alphas = activation, norms, alphas
        self._make_threshold()
        for name, value in (("input_scale", input_scale), ("input_mean", input_mean), ("output_scale", output_scale)):
            self.register_buffer(name, head_values(name, value, n_heads, d, self.weights.W_enc))
        if self.output_scale is None and self.input_scale is not None:
            self.output_scale = 1 / self.input_scale
        self.sites: tuple[str, ...] | None = None
        self.metadata: Metadata | None = None

    def _make_threshold(self) -> None:
        wide = torch.promote_types(self.weights.W_enc.dtype, torch.float32)
        shape: tuple[int, ...] = () if self.norms != "per_head" else (self.n_heads,)
        if isinstance(self.activation, JumpReLU):
            shape = (self.n_latents,)
        elif not isinstance(self.activation, BatchTopK):
            self.threshold = None
            return
        zeros = torch.zeros(shape, dtype=wide, device=self.weights.W_enc.device)
        if isinstance(self.activation, JumpReLU):
            self.threshold = nn.Parameter(zeros)
        else:
            self.register_buffer("threshold", zeros)

    @property
    def W_enc(self) -> Tensor:
        """[F, H * d]: a latent's rows for all heads, side by side."""
        return self.weights.W_enc

    @property
    def W_dec(self) -> Tensor:
        """[F, H * d]: a latent's rows for all heads, side by side."""
        return self.weights.W_dec

    @property
    def b_enc(self) -> Tensor:
        """[F]."""
        assert self.weights.b_enc is not None
        return self.weights.b_enc

    @property
    def b_dec(self) -> Tensor:
        """[H, d], a view."""
        return self.weights.b_dec.view(self.n_heads, self.d)

    @property
    def architecture(self) -> str:
        """That this is a crosscoder, and its activation's name."""
        return f"crosscoder-{self.activation.name}"

    def decoder_to(self, head: int) -> Tensor:
        """[F, d], a view: the decoder to one head."""
        return self.W_dec.view(self.n_latents, self.n_heads, self.d)[:, head]

    def code_norms(self) -> Tensor | None:
        """n by latent, [F], or [H, F] for "per_head", in at least float32; None for "none"."""
        return decoder_norms(self.W_dec.detach(), self.n_heads, self.norms, self.alphas)

    def encode(self, x: Tensor | Sequence[Tensor]) -> list[Codes]:
        """Codes for each head, of x [..., H, d], or of H tensors [..., d]: one object H times, unless heads select.

        With "per_head" they are H objects: thresholds select from one product, TopK takes a product for each head.
        Raises ValueError for another shape, TypeError for anything but floats.
        """
        given = self._normalised(x)
        norms = self.code_norms()
        if isinstance(self.activation, TopK):
            scales = [None] if norms is None else [norms] if norms.dim() == 1 else list(norms)
            made = [self._top_k(given, self.activation, scale) for scale in scales]
        else:
            made = self._above(given, folded(self._thresholds(), norms))
        return made if len(made) == self.n_heads else made * self.n_heads

    def _thresholds(self) -> Tensor:
        if self.threshold is None:
            return self.W_enc.new_zeros((), dtype=torch.promote_types(self.W_enc.dtype, torch.float32))
        per_head = self.threshold.dim() == 1 and isinstance(self.activation, BatchTopK)
        return self.threshold.detach()[:, None] if per_head else self.threshold.detach()

    def _top_k(self, x: Tensor, activation: TopK, scale: Tensor | None) -> Codes:
        values, indices = encode_topk(
            x,
            self.W_enc,
            self.b_enc,
            k=activation.k,
            scale=None if scale is None else positive(scale),
            activation="relu" if activation.relu else "none",
            prepared=self.weights.prepared(),
        )
        if scale is not None:
            # Times a norm of 0 nothing is above 0, as small as the scale is that takes its place.
            values = values.masked_fill((scale == 0)[indices.long()], 0)
        return Codes(values, indices, None, x.shape[:-1], self.n_latents)

    def _above(self, x: Tensor, floors: Tensor) -> list[Codes]:
        """Codes above floors [] or [F]; with floors [H, F] those of every head, found among what is above the least."""
        lowest = floors.amin(0) if floors.dim() == 2 else floors
        found = encode_threshold(x, self.W_enc, self.b_enc, lowest, prepared=self.weights.prepared())
        shape = x.shape[:-1]
        if floors.dim() < 2:
            return [Codes(*found, shape, self.n_latents)]
        kept = above_their_floors(found, x.reshape(-1, x.shape[-1]), self.W_enc, self.b_enc, floors)
        return [Codes(*one, shape, self.n_latents) for one in kept]

    def _normalised(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """[..., H * d] in the weights' dtype."""
        if not isinstance(x, Tensor):
            if len(x) != self.n_heads or len({one.shape for one in x}) > 1:
                shapes = [list(one.shape) for one in x]
                raise ValueError(f"x: got tensors of shapes {shapes}, need {self.n_heads} of one shape [..., {self.d}]")
            x = torch.stack(tuple(x), -2)
        if not x.is_floating_point():
            raise TypeError(f"x: got dtype {x.dtype}, need a floating dtype")
        if x.dim() < 2 or x.shape[-2:] != (self.n_heads, self.d):
            need = f"[..., H, d] with H = {self.n_heads} and d = {self.d}"
            raise ValueError(f"x: got shape {list(x.shape)}, need {need}")
        if self.input_mean is not None:
            x = x - self.input_mean
        if self.input_scale is not None:
            x = x * self.input_scale
        return x.to(self.W_enc.dtype).flatten(-2)

    def decode(self, codes: Sequence[Codes]) -> Tensor:
        """[..., H, d] from the codes of every head, in the weights' dtype."""
        if len(codes) != self.n_heads:
            raise ValueError(f"codes: got those of {len(codes)} heads, need {self.n_heads}")
        first = codes[0]
        if any(one is not first for one in codes):
            return torch.stack([self.decode_to(head, one) for head, one in enumerate(codes)], -2)
        out = _decoded(first, self.W_dec, self.weights.b_dec).view(*first.shape, self.n_heads, self.d)
        return self._undone(out, slice(None)).to(self.W_dec.dtype)

    def decode_to(self, head: int, codes: Codes) -> Tensor:
        """[..., d]: what codes write at one head, in the weights' dtype."""
        out = _decoded(codes, self.decoder_to(head), self.b_dec[head]).view(*codes.shape, self.d)
        return self._undone(out, head).to(self.W_dec.dtype)

    def _undone(self, out: Tensor, heads: int | slice) -> Tensor:
        if self.output_scale is not None:
            out = out * self.output_scale[heads]
        return out if self.input_mean is None else out + self.input_mean[heads]

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """The reconstruction of x, [..., H, d] or H tensors [..., d]: [..., H, d] in the dtype of x."""
        dtype = x.dtype if isinstance(x, Tensor) else x[0].dtype
        return self.decode(self.encode(x)).to(dtype)

    def extra_repr(self) -> str:
        """What repr() shows between the brackets."""
        alphas = "" if self.alphas is None else f", alphas={self.alphas}"
        return f"d={self.d}, n_heads={self.n_heads}, {self.activation}, norms={self.norms!r}{alphas}"

    def _repr_html_(self) -> str:
        facts = {"d": self.d, "n_heads": self.n_heads, "n_latents": f"{self.n_latents:,}"}
        more = {"activation": self.activation, "norms": self.norms, "alphas": self.alphas}
        return module_card(self, {**facts, **more}, self.metadata, self.sites)


def _decoded(codes: Codes, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """[T, width] in at least float32."""
    if codes.n_latents != len(W_dec):
        raise ValueError(f"codes: got n_latents = {codes.n_latents}, need {len(W_dec)}")
    if codes.offsets is not None:
        return decode_csr(codes.values, codes.indices, codes.offsets, W_dec, b_dec, wide=True)
    k = codes.values.shape[-1]
    return decode(codes.values.reshape(-1, k), codes.indices.reshape(-1, k), W_dec, b_dec, wide=True)
