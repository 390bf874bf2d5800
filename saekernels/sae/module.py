"""One SAE module for every architecture: weights, an activation as data, and optional extras."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saekernels.ops import _check, decode, decode_csr
from saekernels.ops.prepare import PreparedWeights, usable
from saekernels.sae.activations import (
    AbsTopK,
    Activation,
    BatchTopK,
    ConstantNorm,
    Gated,
    GroupMax,
    JumpReLU,
    LayerNorm,
    Normalization,
    Scale,
    TopK,
)
from saekernels.sae.cards.modules import module_card
from saekernels.sae.codes import Codes
from saekernels.sae.encoders import ENCODERS
from saekernels.sae.entries import positive
from saekernels.sae.metadata import Metadata

PRE_BIASES = ("none", "b_dec", "separate")
NORMALIZATIONS = (LayerNorm, ConstantNorm, Scale)


class SAE(nn.Module):
    """A sparse autoencoder or transcoder. Latents are rows: W_enc [F, d_in], W_dec [F, d_out].

    With x' the normalised input, pre = (x' - pre_bias) @ W_enc.T + b_enc, codes = activation(pre), and the output is
    codes @ W_dec + b_dec with the normalisation undone, plus x @ W_skip.T where there is a skip connection.

    Args:
        d_in: width of the input.
        n_latents: F.
        activation: ReLU(), TopK(k, relu), AbsTopK(k), GroupMax(k), JumpReLU(), BatchTopK(k) or Gated().
        d_out: width of the output; d_in unless this is a transcoder.
        pre_bias: "none"; "b_dec" (the decoder's bias is subtracted from the input); "separate" (a parameter b_pre
            [d_in]).
        normalization: None, LayerNorm(), ConstantNorm() or Scale(factor).
        rescale_by_decoder_norm: pre-activations are multiplied by the norm of their decoder row before selection, and
            codes divided by it before decoding.
        skip: whether there is a W_skip [d_out, d_in].

    Parameters: W_enc, W_dec, b_dec; b_enc [F] (not Gated); b_gate, b_mag, r_mag [F] (Gated); threshold [F] (JumpReLU);
    b_pre, W_skip where asked for. Buffer: threshold [] (BatchTopK). Thresholds get no gradient here: a straight-through
    estimator belongs to a training loop.

    Attribute metadata: what the checkpoint said of the model and the text, where there is one (`Metadata`), else None.

    Inputs are computed in the dtype of the weights; the output comes back in the dtype of the input.

    Raises:
        ValueError: sizes or options that do not exist or do not fit each other, by name.
        TypeError: a size that is no int.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor | None
    b_dec: Tensor
    b_pre: Tensor | None
    W_skip: Tensor | None
    threshold: Tensor | None
    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        activation: Activation,
        *,
        d_out: int | None = None,
        pre_bias: str = "b_dec",
        normalization: Normalization | None = None,
        rescale_by_decoder_norm: bool = False,
        skip: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.d_in, self.n_latents, self.d_out = d_in, n_latents, d_in if d_out is None else d_out
        self.activation = activation
        self.normalization = normalization
        self.rescale_by_decoder_norm = rescale_by_decoder_norm
        self.pre_bias_kind = pre_bias
        self.metadata: Metadata | None = None
        self._prepared: PreparedWeights | None = None
        self._seen: tuple[int, int, int] | None = None
        self._check()
        self._make_parameters(skip, {"dtype": dtype, "device": device})
        self.reset_parameters()

    def _check(self) -> None:
        for name in ("d_in", "n_latents", "d_out"):
            size = _check.integer(getattr(self, name))
            if size is None:
                raise TypeError(f"{name}: got {getattr(self, name)!r:.40}, need an int")
            if size < 1:
                raise ValueError(f"{name}: got {size}, need at least 1")
            setattr(self, name, size)
        if type(self.activation) not in ENCODERS:
            raise ValueError(f"activation: got {self.activation!r}, need one of {[a.__name__ for a in ENCODERS]}")
        if self.normalization is not None and type(self.normalization) not in NORMALIZATIONS:
            needed = [normalization.__name__ for normalization in NORMALIZATIONS]
            raise ValueError(f"normalization: got {self.normalization!r:.80}, need None or one of {needed}")
        if self.pre_bias_kind not in PRE_BIASES:
            raise ValueError(f"pre_bias: got {self.pre_bias_kind!r}, need one of {PRE_BIASES}")
        if self.pre_bias_kind == "b_dec" and self.d_in != self.d_out:
            raise ValueError(
                f"pre_bias: got 'b_dec' with d_in = {self.d_in} and d_out = {self.d_out}, need equal widths, "
                "or 'none' or 'separate'"
            )
        if self.rescale_by_decoder_norm and isinstance(self.activation, Gated):
            raise ValueError("rescale_by_decoder_norm: got True with Gated(), for which it is not defined")
        if isinstance(self.activation, TopK | AbsTopK | GroupMax):
            k = self.activation.k
            if k > self.n_latents:
                raise ValueError(f"activation: got k = {k}, need at most n_latents = {self.n_latents}")
            if isinstance(self.activation, GroupMax) and self.n_latents % k:
                raise ValueError(f"activation: got GroupMax(k={k}), need a k that divides n_latents = {self.n_latents}")

    def _make_parameters(self, skip: bool, factory: dict[str, object]) -> None:
        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, **factory))  # type: ignore[call-overload]

        gated = isinstance(self.activation, Gated)
        self.W_enc = parameter(self.n_latents, self.d_in)
        self.W_dec = parameter(self.n_latents, self.d_out)
        self.b_enc = None if gated else parameter(self.n_latents)
        self.b_dec = parameter(self.d_out)
        self.b_pre = parameter(self.d_in) if self.pre_bias_kind == "separate" else None
        self.W_skip = parameter(self.d_out, self.d_in) if skip else None
        if gated:
            self.b_gate, self.b_mag, self.r_mag = (parameter(self.n_latents) for _ in range(3))
        if isinstance(self.activation, BatchTopK):
            self.register_buffer("threshold", torch.empty((), **factory))  # type: ignore[call-overload]
        else:
            self.threshold = parameter(self.n_latents) if isinstance(self.activation, JumpReLU) else None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Decoder rows random on the unit sphere, the encoder equal to them where widths allow, everything else 0."""
        for value in (*self.parameters(), *self.buffers()):
            value.zero_()
        self.W_dec.normal_()
        self.W_dec.div_(self.decoder_norms().clamp(min=1e-12)[:, None])
        if self.d_in == self.d_out:
            self.W_enc.copy_(self.W_dec)
        else:
            self.W_enc.normal_(std=self.d_in**-0.5)

    @property
    def architecture(self) -> str:
        """The activation's name: "standard", "topk", "abstopk", "groupmax", "jumprelu", "batchtopk" or "gated"."""
        return self.activation.name

    @property
    def pre_bias(self) -> Tensor | None:
        """[d_in], what is subtracted from the input, or None."""
        return self.b_dec if self.pre_bias_kind == "b_dec" else self.b_pre

    def decoder_norms(self) -> Tensor:
        """[F], the Euclidean norms of the decoder's rows."""
        return self.W_dec.norm(dim=1)

    def prepared(self) -> PreparedWeights | None:
        """W_enc prepared for the encoders (`saekernels.prepare`), from its second use without a change on.

        So a training loop, whose weights change at every step, never pays for it. None where W_enc is not what the
        encoder multiplies with, or where no backend prepares weights. Its memory is freed with the module.
        """
        W_enc = self._parameters.get("W_enc")  # not what a parametrization makes anew at every access
        if W_enc is None or not usable(W_enc):
            return None
        now = (id(W_enc), W_enc._version, W_enc.data_ptr())
        if now != self._seen or (self._prepared is not None and self._prepared.weights is not W_enc):
            self._seen, self._prepared = now, None
        elif self._prepared is None:
            self._prepared = PreparedWeights(W_enc)
        return self._prepared

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_prepared": None, "_seen": None}

    def encode(self, x: Tensor) -> Codes:
        """Sparse codes of x [..., d_in]. Raises ValueError for another width, TypeError for anything but floats."""
        _check.tensor("x", x)
        _check.dtype_in("x", x, _check.FLOATS)
        if x.dim() < 1 or x.shape[-1] != self.d_in:
            raise ValueError(f"x: got shape {list(x.shape)}, need [..., d_in] with d_in = {self.d_in}")
        x = x.to(self.W_enc.dtype)
        scale = shift = None
        if self.normalization is not None:
            x, scale, shift = self.normalization.apply(x)
        values, indices, offsets = ENCODERS[type(self.activation)](self, x, self.activation)
        return Codes(values, indices, offsets, x.shape[:-1], self.n_latents, scale, shift)

    def decode(self, codes: Codes) -> Tensor:
        """[..., d_out] from codes, the normalisation undone, the skip connection not added."""
        if codes.n_latents != self.n_latents:
            raise ValueError(f"codes: got n_latents = {codes.n_latents}, need {self.n_latents}")
        values = codes.values
        if self.rescale_by_decoder_norm:
            values = (values / positive(self.decoder_norms())[codes.indices.long()]).to(values.dtype)
        if codes.offsets is None:
            out = decode(values, codes.indices, self.W_dec, self.b_dec)
        else:
            out = decode_csr(values, codes.indices, codes.offsets, self.W_dec, self.b_dec)
            out = out.view(*codes.shape, self.d_out)
        if codes.scale is not None:
            out = out * codes.scale
        return out if codes.shift is None else out + codes.shift

    def forward_with_codes(self, x: Tensor) -> tuple[Tensor, Codes]:
        """(the output of `forward`, the codes behind it) for x [..., d_in]."""
        codes = self.encode(x)
        out = self.decode(codes)
        if self.W_skip is not None:
            out = out + nn.functional.linear(x.to(self.W_skip.dtype), self.W_skip)
        return out.to(x.dtype), codes

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction (or a transcoder's output) of x [..., d_in], skip connection included: [..., d_out]."""
        return self.forward_with_codes(x)[0]

    def _options(self) -> dict[str, object]:
        return {
            "d_out": self.d_out if self.d_out != self.d_in else None,
            "pre_bias": self.pre_bias_kind,
            "normalization": self.normalization,
            "rescale_by_decoder_norm": self.rescale_by_decoder_norm or None,
            "skip": self.W_skip is not None or None,
        }

    def extra_repr(self) -> str:
        """What repr() shows between the brackets: sizes, activation, and the options that are not the default."""
        shown = "".join(f", {name}={value}" for name, value in self._options().items() if value is not None)
        return f"d_in={self.d_in}, n_latents={self.n_latents}, {self.activation}{shown}"

    def _repr_html_(self) -> str:
        facts = {"d_in": self.d_in, "n_latents": f"{self.n_latents:,}", "activation": self.activation}
        return module_card(self, {**facts, **self._options()}, self.metadata)
