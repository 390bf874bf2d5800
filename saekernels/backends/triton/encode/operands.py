"""operands: what the screen multiplies, and what its product says of the score asked for."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Vectors(NamedTuple):
    """One number per row or latent, float32, each None where it is not needed; kernels take it as one argument.

    Attributes:
        bias: [F], added to the product.
        row_scale, latent_scale: [T], [F]: factors of quantised operands; None: 1.
        row_norm, row_error [T], latent_norm, latent_error, latent_slack [F]: for the reach; None: the product is the
            score itself.
        factor: [F], the encoder's scale, which scores are multiplied by before they are compared; what is of the reach
            is of the multiplied scores. None: 1.
        stride_latent: elements from one latent's to the next one's.
    """

    bias: Tensor | None = None
    row_scale: Tensor | None = None
    latent_scale: Tensor | None = None
    row_norm: Tensor | None = None
    row_error: Tensor | None = None
    latent_norm: Tensor | None = None
    latent_error: Tensor | None = None
    latent_slack: Tensor | None = None
    factor: Tensor | None = None
    stride_latent: int = 1

    def of_reach(self) -> Vectors:
        """Those of the reach alone: one binary whatever else there is, for a kernel that reads no others."""
        return self._replace(bias=None, row_scale=None, latent_scale=None, factor=None)

    def _sliced(self, names: tuple[str, ...], part: slice) -> Vectors:
        parts = {name: vector[part] for name in names if (vector := getattr(self, name)) is not None}
        return self._replace(**parts)


class Operands(NamedTuple):
    """x [T, d] and W [F, d] of one dtype, what goes with them, and how float32 operands are multiplied."""

    x: Tensor
    W: Tensor
    vectors: Vectors = Vectors()
    float32_product: str = "tf32"

    @property
    def rescored(self) -> bool:
        """Whether candidates are only bounded, not scored, by the product."""
        return self.vectors.row_norm is not None

    def every(self, step: int) -> Operands:
        """The operands of each step-th latent, from the middle of the first step on: views, where latents are rows."""
        part = slice(step // 2, None, step)
        names = ("bias", "latent_scale", "latent_norm", "latent_error", "latent_slack", "factor")
        vectors = self.vectors._sliced(names, part)._replace(stride_latent=step)
        W = self.W[part]
        # Single elements far apart would each cost a whole sector of memory traffic.
        return self._replace(W=W if W.stride(1) == 1 else W.contiguous(), vectors=vectors)

    def rows(self, part: slice) -> Operands:
        """The operands of some rows of x: views."""
        vectors = self.vectors._sliced(("row_scale", "row_norm", "row_error"), part)
        return self._replace(x=self.x[part], vectors=vectors)
