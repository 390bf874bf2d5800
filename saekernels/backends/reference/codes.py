"""What is done with sparse codes: decode, and the primitives of its gradient, each in one fixed order of summation.

Codes are entries e = (row, latent, value) in CSR: rows own entries offsets[t] .. offsets[t+1]. Three maps, closed under
differentiation, carry every gradient in the library:

- decode: out[t] = sum over the entries of t of value * W[latent]
- gather_dot: out[e] = <a[row], W[latent]>
- gather_matmul: gather_dot with each of many a
- segment_outer: out[i] = sum over the entries of latent i of value * a[row]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from saekernels.backends.reference.rows import accumulator, fixed_order_sum, row_chunks


def _rows_of(offsets: Tensor) -> Tensor:
    """The row of each entry: [nnz]."""
    rows = torch.arange(offsets.numel() - 1, device=offsets.device)
    return rows.repeat_interleave(offsets.diff())


def _sum_ranges(out: Tensor, starts: Tensor, counts: Tensor, term: Callable[[Tensor], Tensor]) -> None:
    """out[i] += term(starts[i]) + term(starts[i] + 1) + ..., one position of every range at a time."""
    for position in range(int(counts.max()) if counts.numel() else 0):
        live = (counts > position).nonzero()[:, 0]
        for part in row_chunks(live.numel(), out[0].numel()):
            out[live[part]] += term(starts[live[part]] + position)


def decode(
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    W_dec: Tensor,
    b_dec: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """See `saekernels.decode_csr`: [T, d_out]. Values and indices may have any shape of nnz elements."""
    wide, values, indices = accumulator(W_dec.dtype), values.reshape(-1), indices.reshape(-1)
    out = torch.zeros(offsets.numel() - 1, W_dec.shape[1], dtype=wide, device=W_dec.device)
    _sum_ranges(
        out,
        offsets[:-1],
        offsets.diff(),
        lambda e: values[e, None].to(wide) * W_dec[indices[e].long()].to(wide),
    )
    return (out if b_dec is None else out.add_(b_dec.to(wide))).to(dtype or W_dec.dtype)


def gather_dot(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """out[e] = <a[row of e], W[indices[e]]>: [nnz] in a's dtype or `dtype`."""
    wide = accumulator(a.dtype)
    rows = _rows_of(offsets)
    out = a.new_empty(indices.numel(), dtype=dtype)
    for part in row_chunks(indices.numel(), a.shape[1]):
        terms = a[rows[part]].to(wide) * W[indices[part].long()].to(wide)
        out[part] = fixed_order_sum(terms).to(out.dtype)
    return out


def gather_matmul(a: Tensor, W: Tensor, indices: Tensor, offsets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """See `saekernels.gather_matmul`: [nnz, B] in a's dtype or `dtype`."""
    out = a.new_empty(indices.numel(), a.shape[0], dtype=dtype)
    for column, rows in enumerate(a):
        out[:, column] = gather_dot(rows, W, indices, offsets, dtype)
    return out


def _by_latent(indices: Tensor, n_latents: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entries grouped by latent, in their own order within a group: (entries [nnz], starts [F], counts [F])."""
    entries = torch.sort(indices, stable=True).indices
    counts = torch.bincount(indices.long(), minlength=n_latents)
    return entries, counts.cumsum(0) - counts, counts


def segment_outer(values: Tensor, indices: Tensor, offsets: Tensor, a: Tensor, n_latents: int) -> Tensor:
    """out[i] = sum over entries e of latent i, in ascending e, of values[e] * a[row of e]: [F, d] in a's dtype."""
    wide = accumulator(a.dtype)
    rows = _rows_of(offsets)
    entries, starts, counts = _by_latent(indices, n_latents)
    out = torch.zeros(n_latents, a.shape[1], dtype=wide, device=a.device)

    def term(position: Tensor) -> Tensor:
        e = entries[position]
        return values[e, None].to(wide) * a[rows[e]].to(wide)

    _sum_ranges(out, starts, counts, term)
    return out.to(a.dtype)


def segment_sum(values: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    """out[i] = sum over entries e of latent i, in ascending e, of values[e]: [F] in values' dtype."""
    wide = accumulator(values.dtype)
    entries, starts, counts = _by_latent(indices, n_latents)
    out = torch.zeros(n_latents, dtype=wide, device=values.device)
    _sum_ranges(out, starts, counts, lambda position: values[entries[position]].to(wide))
    return out.to(values.dtype)
