"""The gradient that all sparse encoders share: through the selected latents and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saekernels.ops._library import OPS

_ROWS_AT_ONCE = 4096


def encoder_gradient(
    ctx: Any,
    encoder: Sequence[Any],
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of (x, W_enc, b_enc, pre_bias) for pre[e] = <x[row] - pre_bias, W_enc[latent]> + b_enc[latent].

    Args:
        ctx: with `backend` and `sparse_grad`, whether W_enc's is a sparse tensor of the rows of the selected latents.
        encoder: x [..., d], W_enc, b_enc, pre_bias, as they were saved. Saved tensors may be unpacked once only: a
            block that is checkpointed computes them for that one time.
        grad: [nnz], the gradient of each entry's pre-activation; indices [nnz] and offsets [T+1] say which entries.
        needed: whether each of the four is asked for.
    """
    x, W_enc, b_enc, pre_bias = encoder
    rows, backend = x.reshape(-1, x.shape[-1]), ctx.backend
    d_x = d_W = d_b = d_pre = None
    if needed[3] and pre_bias is not None and not needed[0] and indices.numel() >= 2 * W_enc.shape[0]:
        # The sum over all tokens is one product, which reads W_enc once: sooner done than a row of it for every entry.
        d_pre = -_weighted_rows(grad, indices, W_enc, backend).to(pre_bias.dtype)
    elif needed[0] or needed[3]:
        d_rows = OPS.decode_csr(grad, indices, offsets, W_enc, backend=backend)
        d_x = d_rows.view(x.shape) if needed[0] else None
        if needed[3] and pre_bias is not None:
            wide = torch.promote_types(d_rows.dtype, torch.float32)
            d_pre = -d_rows.sum(0, dtype=wide).to(pre_bias.dtype)
    if needed[1]:
        if pre_bias is not None:
            # In float32 also for half inputs: the forward subtracts before it rounds.
            wide = torch.promote_types(x.dtype, torch.float32)
            rows, grad = rows.to(wide) - pre_bias.to(wide), grad.to(wide)
        d_W = weight_gradient(grad, indices, offsets, rows, W_enc.shape[0], ctx.sparse_grad, backend).to(W_enc.dtype)
    if needed[2] and b_enc is not None:
        d_b = OPS.segment_sum(grad.to(b_enc.dtype), indices, W_enc.shape[0], backend=backend)
    return d_x, d_W, d_b, d_pre


def _weighted_rows(values: Tensor, indices: Tensor, W: Tensor, backend: str | None) -> Tensor:
    """[d] in at least float32: the sum over the entries of value * W[latent]."""
    wide = torch.promote_types(W.dtype, torch.float32)
    sums = OPS.segment_sum(values.to(wide), indices, W.shape[0], backend=backend)
    parts = zip(sums.split(_ROWS_AT_ONCE), W.split(_ROWS_AT_ONCE), strict=True)
    return torch.stack([part @ rows.to(wide) for part, rows in parts]).sum(0)


def weight_gradient(
    values: Tensor, indices: Tensor, offsets: Tensor, a: Tensor, latents: int, sparse: bool, backend: str | None
) -> Tensor:
    """Row i: the sum over the entries of latent i of value * a[row]; [latents, d], dense or sparse over its rows."""
    if not sparse:
        return OPS.segment_outer(values, indices, offsets, a, latents, backend=backend)
    used = torch.bincount(indices, minlength=latents) > 0
    touched, places = used.nonzero()[:, 0], (used.cumsum(0) - 1)[indices.long()]
    rows = OPS.segment_outer(values, places.int(), offsets, a, touched.numel(), backend=backend)
    size = (latents, a.shape[1])
    return torch.sparse_coo_tensor(touched[None], rows, size, is_coalesced=True, check_invariants=False)
