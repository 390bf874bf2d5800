"""One layer of a cross-layer transcoder: an encoder, and decoders to what this layer and all later ones write."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from saekernels.ops import decode, decode_csr
from saekernels.sae.activations import Activation
from saekernels.sae.codes import Codes
from saekernels.sae.entries import positive
from saekernels.sae.module import SAE


class SourceLayer(SAE):
    """An SAE without a bias of its decoder, whose decoder's rows lie side by side for every layer that they write to.

    W_dec [F, targets * d_target] is [F, targets, d_target] in memory, target 0 being the layer itself; so the norm of a
    decoder row is that of all targets concatenated, as "Circuit Tracing" (Ameisen et al. 2025) weighs sparsity.

    Args:
        d_in, n_latents, activation, rescale_by_decoder_norm, pre_bias, dtype, device: as of `SAE`.
        targets: layers that this one writes to, itself included.
        d_target: width of what each of them writes.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        activation: Activation,
        *,
        targets: int,
        d_target: int,
        pre_bias: str = "none",
        rescale_by_decoder_norm: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.targets, self.d_target = targets, d_target
        super().__init__(
            d_in,
            n_latents,
            activation,
            d_out=targets * d_target,
            pre_bias=pre_bias,
            rescale_by_decoder_norm=rescale_by_decoder_norm,
            dtype=dtype,
            device=device,
        )

    def _make_parameters(self, skip: bool, factory: dict[str, object]) -> None:
        super()._make_parameters(skip, factory)
        self.register_parameter("b_dec", None)

    _mapped: tuple[Path, int, int] | None = None

    def lies_in(self, file: Path) -> None:
        """Say that W_dec, as it is now, is memory that is mapped from this file."""
        if not self.W_dec.is_inference():  # else no change of it could be told
            self._mapped = (file, self.W_dec.data_ptr(), self.W_dec._version)

    @property
    def file(self) -> Path | None:
        """The file that W_dec is mapped from; None if it is another tensor now, or has been written to."""
        W_dec, mapped = self.W_dec, self._mapped
        return mapped[0] if mapped and mapped[1:] == (W_dec.data_ptr(), W_dec._version) else None

    def decoder_to(self, target: int) -> Tensor:
        """[F, d_target], a view: the decoder to the target-th of the layers that this one writes to."""
        return self.W_dec.view(self.n_latents, self.targets, self.d_target)[:, target]

    def decode_to(self, target: int, codes: Codes, b_dec: Tensor | None = None, *, targets: int = 1) -> Tensor:
        """[T, targets * d_target] in at least float32: what codes write at some targets side by side, plus b_dec.

        Args:
            target: the first of the targets, 0 being this layer itself; targets: how many, from there on.
            codes: of this layer. b_dec: [targets * d_target].
        """
        values = codes.values
        W_dec = self.W_dec[:, target * self.d_target : (target + targets) * self.d_target]
        if self.rescale_by_decoder_norm:
            values = (values / positive(self.decoder_norms())[codes.indices.long()]).to(values.dtype)
        if codes.offsets is not None:
            return decode_csr(values, codes.indices, codes.offsets, W_dec, b_dec, wide=True)
        k = values.shape[-1]
        return decode(values.reshape(-1, k), codes.indices.reshape(-1, k), W_dec, b_dec, wide=True)
