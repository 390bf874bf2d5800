"""linear_ce_kl: two streams against one pass over W_U; logits live in registers only.

`parts_kernel` leaves, per row and part of the vocabulary, maxima and sums relative to them; `merge_kernel` joins a
row's parts in ascending order: with Z = sum e^(z - max), CE = log Z + max - z[target] and KL = sum p (z_p - z_q) -
(lse_p - lse_q), the last difference taken part by part, so that a small KL keeps its digits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.launch import architecture, launch
from saekernels.backends.triton.loss.loss_parts import Parts, Streams, parts_kernel
from saekernels.backends.triton.product import tile_for

# Vocabulary tiles per part: 28 bytes of partial results per row for each.
TILES = 16
# float32 operands: three products of tensor cores come within a few units of float32's own rounding.
FLOAT32_PRODUCT = "tf32x3"
ROWS = 64


@triton.jit
def merge_kernel(  # type: ignore[no-untyped-def]
    parts, targets, ce_p, ce_q, kl, agree, T, n_parts, ignore_index, ROWS: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = rows < T
    max_p = tl.full((ROWS,), float("-inf"), tl.float32)
    max_q = tl.full((ROWS,), float("-inf"), tl.float32)
    sum_p = tl.zeros((ROWS,), tl.float32)
    sum_q = tl.zeros((ROWS,), tl.float32)
    cross = tl.zeros((ROWS,), tl.float32)
    best_p = tl.zeros((ROWS,), tl.int32)
    best_q = tl.zeros((ROWS,), tl.int32)
    plane = tl.full((), 1, tl.int64) * T
    for part in range(0, n_parts):
        place = part * 5 * plane + rows
        top_p = tl.load(parts.sums + place, mask=live, other=0.0)
        top_q = tl.load(parts.sums + place + 2 * T, mask=live, other=0.0)
        first = parts.bests + part * 2 * plane + rows
        best_p = tl.where(top_p > max_p, tl.load(first, mask=live, other=0), best_p)
        best_q = tl.where(top_q > max_q, tl.load(first + T, mask=live, other=0), best_q)
        new_p = tl.maximum(max_p, top_p)
        new_q = tl.maximum(max_q, top_q)
        old_p = tl.where(max_p == new_p, 1.0, tl.exp(max_p - new_p))
        old_q = tl.where(max_q == new_q, 1.0, tl.exp(max_q - new_q))
        add_p = tl.where(top_p == new_p, 1.0, tl.exp(top_p - new_p))
        add_q = tl.where(top_q == new_q, 1.0, tl.exp(top_q - new_q))
        sum_p = sum_p * old_p + tl.load(parts.sums + place + T, mask=live, other=0.0) * add_p
        sum_q = sum_q * old_q + tl.load(parts.sums + place + 3 * T, mask=live, other=0.0) * add_q
        cross = cross * old_p + tl.load(parts.sums + place + 4 * T, mask=live, other=0.0) * add_p
        max_p = new_p
        max_q = new_q
    counted = tl.load(targets + rows, mask=live, other=ignore_index) != ignore_index
    loss_p = tl.log(sum_p) + (max_p - tl.load(parts.target_logits + rows, mask=live & counted, other=0.0))
    loss_q = tl.log(sum_q) + (max_q - tl.load(parts.target_logits + T + rows, mask=live & counted, other=0.0))
    divergence = cross / sum_p - ((max_p - max_q) + tl.log(sum_p / sum_q))
    defined = (sum_p == sum_p) & (sum_q == sum_q)
    same = tl.where(defined, (best_p == best_q).to(tl.float32), float("nan"))
    tl.store(ce_p + rows, tl.where(counted, loss_p, 0.0), mask=live)
    tl.store(ce_q + rows, tl.where(counted, loss_q, 0.0), mask=live)
    tl.store(kl + rows, tl.where(counted, divergence, 0.0), mask=live)
    tl.store(agree + rows, tl.where(counted, same, 0.0), mask=live)


def linear_ce_kl(
    h_p: Tensor,
    h_q: Tensor,
    W_U: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ce_p [T] and, as h_q has them, [T] or [R, T]: ce_q, KL(p || q), top-1 agreement; see `saekernels.linear_ce_kl`.

    Streams are compared one after the other.
    Working memory: 28 bytes per row and TILES vocabulary tiles. A target outside the vocabulary has no defined loss.
    """
    if h_q.dim() == 3:
        found = [linear_ce_kl(h_p, stream, W_U, targets, bias, softcap, ignore_index) for stream in h_q]
        ce_q, kl, agree = (torch.stack(column) for column in list(zip(*found, strict=True))[1:])
        return found[0][0], ce_q, kl, agree
    rows, vocabulary, device = h_p.shape[0], W_U.shape[0], h_p.device
    config = configs.lookup("linear_ce_kl", architecture(device), h_p.dtype, h_p.shape[1])
    n_parts = triton.cdiv(vocabulary, config.BN * TILES)
    parts = Parts(
        torch.empty(n_parts, 5, rows, dtype=torch.float32, device=device),
        torch.empty(n_parts, 2, rows, dtype=torch.int32, device=device),
        torch.empty(2, rows, dtype=torch.float32, device=device),
    )
    targets = targets.contiguous()
    launch(
        parts_kernel,
        (triton.cdiv(rows, config.BM), n_parts),
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        of=Streams(h_p, h_q, W_U, rows, *W_U.shape, *h_p.stride(), *h_q.stride(), *W_U.stride()),
        bias=bias,
        stride_bias=0 if bias is None else bias.stride(0),
        targets=targets,
        parts=parts,
        softcap=None if softcap is None else float(softcap),
        TILES=TILES,
        TILE=tile_for(h_p, config, FLOAT32_PRODUCT),
    )
    ce_p, ce_q, kl, agree = (torch.empty(rows, dtype=torch.float32, device=device) for _ in range(4))
    launch(
        merge_kernel,
        (triton.cdiv(rows, ROWS),),
        device,
        num_warps=2,
        parts=parts,
        targets=targets,
        ce_p=ce_p,
        ce_q=ce_q,
        kl=kl,
        agree=agree,
        T=rows,
        n_parts=n_parts,
        ignore_index=ignore_index,
        ROWS=ROWS,
    )
    return ce_p, ce_q, kl, agree
