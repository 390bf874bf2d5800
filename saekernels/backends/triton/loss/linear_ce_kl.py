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

from saekernels.backends.triton.launch import architecture, launch
from saekernels.backends.triton.loss.logits import (
    FLOAT32_PRODUCT,
    LOG2_E,
    shift_of,
    special,
    streams,
    tile_of_logits,
)
from saekernels.backends.triton.loss.loss_parts import Parts, fade_of, parts_kernel
from saekernels.backends.triton.product import tile_for

# Vocabulary tiles per part: 28 bytes of partial results per row for each.
TILES = 16
ROWS = 64


@triton.jit
def beneath(total, top):  # type: ignore[no-untyped-def]
    """A sum relative to 2^`shift_of` of a maximum, made relative to the maximum's own power, as weights are made."""
    return total / tl.exp2(tl.fma(top, LOG2_E, -shift_of(top)))


@triton.jit
def merge_kernel(  # type: ignore[no-untyped-def]
    parts, targets, ce_p, ce_q, kl, agree, T, n_parts, ignore_index, ROWS: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    stream = tl.program_id(1).to(tl.int64)
    live = rows < T
    max_p = tl.full((ROWS,), float("-inf"), tl.float32)
    max_q = tl.full((ROWS,), float("-inf"), tl.float32)
    sum_p = tl.zeros((ROWS,), tl.float32)
    sum_q = tl.zeros((ROWS,), tl.float32)
    cross = tl.zeros((ROWS,), tl.float32)
    best_p = tl.zeros((ROWS,), tl.int32)
    best_q = tl.zeros((ROWS,), tl.int32)
    for part in range(0, n_parts):
        block = part * tl.num_programs(1) + stream
        sums = parts.sums + block * 5 * T + rows
        bests = parts.bests + block * 2 * T + rows
        top_p = tl.load(sums, mask=live, other=0.0)
        top_q = tl.load(sums + 2 * T, mask=live, other=0.0)
        best_p = tl.where(top_p > max_p, tl.load(bests, mask=live, other=0), best_p)
        best_q = tl.where(top_q > max_q, tl.load(bests + T, mask=live, other=0), best_q)
        new_p = tl.maximum(max_p, top_p)
        new_q = tl.maximum(max_q, top_q)
        old_p = fade_of(max_p, new_p)
        add_p = fade_of(top_p, new_p)
        sum_p = sum_p * old_p + tl.load(sums + T, mask=live, other=0.0) * add_p
        sum_q = sum_q * fade_of(max_q, new_q) + tl.load(sums + 3 * T, mask=live, other=0.0) * fade_of(top_q, new_q)
        cross = cross * old_p + tl.load(sums + 4 * T, mask=live, other=0.0) * add_p
        max_p = new_p
        max_q = new_q
    counted = tl.load(targets + rows, mask=live, other=ignore_index) != ignore_index
    logits = parts.target_logits + stream * 2 * T + rows
    below_p = beneath(sum_p, max_p)
    below_q = beneath(sum_q, max_q)
    loss_p = tl.log(below_p) + (max_p - tl.load(logits, mask=live & counted, other=0.0))
    loss_q = tl.log(below_q) + (max_q - tl.load(logits + T, mask=live & counted, other=0.0))
    divergence = cross / sum_p - ((max_p - max_q) + tl.log(below_p / below_q))
    defined = (sum_p == sum_p) & (sum_q == sum_q)
    same = tl.where(defined, (best_p == best_q).to(tl.float32), float("nan"))
    tl.store(ce_p + rows, tl.where(counted, loss_p, 0.0), mask=rows < tl.where(stream == 0, T, 0))
    rows += stream * T
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

    Working memory: 28 bytes per row of h_q and TILES vocabulary tiles. A target outside the vocabulary has no defined
    loss.
    """
    rows, vocabulary, device = h_p.shape[0], W_U.shape[0], h_p.device
    config = tile_of_logits(h_p, bias)
    n_parts, n_streams = triton.cdiv(vocabulary, config.BN * TILES), h_q.shape[:-2].numel()
    parts = Parts(
        torch.empty(n_parts, n_streams, 5, rows, dtype=torch.float32, device=device),
        torch.empty(n_parts, n_streams, 2, rows, dtype=torch.int32, device=device),
        torch.empty(n_streams, 2, rows, dtype=torch.float32, device=device),
    )
    targets = targets.contiguous()
    launch(
        parts_kernel,
        (n_streams * triton.cdiv(rows, config.BM), n_parts),
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=config.maxnreg,
        of=streams(h_p, h_q if h_q.dim() == 3 else h_q[None], W_U, bias),
        targets=targets,
        parts=parts,
        softcap=None if softcap is None else float(softcap),
        TILES=TILES,
        TILE=tile_for(h_p, config, FLOAT32_PRODUCT),
        SPECIAL=special(architecture(device)),
    )
    ce_p = torch.empty(rows, dtype=torch.float32, device=device)
    ce_q, kl, agree = (torch.empty(h_q.shape[:-1], dtype=torch.float32, device=device) for _ in range(3))
    launch(
        merge_kernel,
        (triton.cdiv(rows, ROWS), n_streams),
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
