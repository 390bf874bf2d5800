"""Sparse codes: what an SAE's encoder returns and its decoder takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saekernels.ops import _check
from saekernels.ops.sparse_maps import uniform_offsets
from saekernels.sae.cards.codes import codes_card


@dataclass(frozen=True)
class Codes:
    """The active latents of a batch of tokens.

    Attributes:
        values: [*shape, k] where every token has k entries, else [nnz] in CSR. Entries may be 0.
        indices: latents of the entries, int32, the shape of values.
        offsets: None where every token has k entries, else [T+1] int64 with T = prod(shape).
        shape: the leading dimensions of the input.
        n_latents: F.
        scale, shift: [*shape, 1] or None: what undoes the input's normalisation on the output.
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor | None
    shape: torch.Size
    n_latents: int
    scale: Tensor | None = None
    shift: Tensor | None = None

    @property
    def tokens(self) -> int:
        """T, the number of rows."""
        return math.prod(self.shape)

    def to_dense(self) -> Tensor:
        """[*shape, F]: the codes with their zeros. Differentiable with respect to the values."""
        if self.offsets is None:
            zeros = self.values.new_zeros(*self.shape, self.n_latents)
            return zeros.scatter(-1, self.indices.long(), self.values)
        rows = torch.arange(self.tokens, device=self.values.device).repeat_interleave(self.offsets.diff())
        zeros = self.values.new_zeros(self.tokens, self.n_latents)
        return zeros.index_put((rows, self.indices.long()), self.values).view(*self.shape, self.n_latents)

    def l0(self) -> Tensor:
        """[*shape] int64: the number of nonzero values of each token."""
        nonzero = self.values != 0
        if self.offsets is None:
            return nonzero.sum(-1)
        running = torch.nn.functional.pad(nonzero.cumsum(0), (1, 0))
        return running[self.offsets].diff().view(self.shape)

    def to_csr(self) -> Codes:
        """The same codes with offsets, values and indices flat."""
        if self.offsets is not None:
            return self
        k = self.values.shape[-1]
        offsets = uniform_offsets(self.tokens, k, self.values.device)
        return replace(self, values=self.values.reshape(-1), indices=self.indices.reshape(-1), offsets=offsets)

    def _repr_html_(self) -> str:
        return codes_card(self.values, self.indices, self.offsets, self.shape, self.n_latents)


def row_sums(terms: Tensor, offsets: Tensor) -> Tensor:
    """[T]: the sums of the terms [nnz] of each row, offsets [T + 1]; in float64 on the way, being added in turn."""
    _check.offsets_of(offsets)
    _check.offsets_data(offsets, terms.numel())
    rows = torch.arange(len(offsets) - 1, device=terms.device).repeat_interleave(offsets.diff())
    sums = terms.new_zeros(len(offsets) - 1, dtype=torch.float64)
    return sums.index_add(0, rows, terms.double()).to(terms.dtype)
