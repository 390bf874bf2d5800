"""encode_threshold on a GPU: screen against the given thresholds, rescore where the screen only bounds, bring into
order.

The number of codes is data, so the host is asked once, when all is counted. Rows with more candidates than room,
denser than any SAE that one would call sparse, take their scores from `dense`, a few rows at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import keys
from saekernels.backends.triton.encode.dense import dense
from saekernels.backends.triton.encode.encoder_inputs import Encoder, encoder
from saekernels.backends.triton.encode.rescore import rescore
from saekernels.backends.triton.encode.scaled import limits_of
from saekernels.backends.triton.encode.screen import screen
from saekernels.backends.triton.failed import count
from saekernels.backends.triton.keys import Candidates
from saekernels.backends.triton.launch import launch, power_of_2, read
from saekernels.backends.triton.topk import chunks

# Candidates per row, and rows at a time so that they take at most BUFFER_BYTES.
CAPACITY = 1024
BUFFER_BYTES = 64 * 2**20


@triton.jit
def keep_kernel(found, threshold, kept, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Count the rescored candidates above their threshold, and blank out the others."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(found.counts + row)
    at = tl.arange(0, BLOCK)
    here = at < tl.where(count <= found.capacity, count, 0)
    entries = found.keys + row * found.capacity + at
    key = tl.load(entries, mask=here, other=keys.EMPTY)
    value = keys.value_of(key)
    limit = tl.load(threshold + tl.where(here, keys.index_of(key), 0))
    keep = here & ((value > limit) | (value != value))
    tl.store(entries, tl.where(keep, key, keys.EMPTY), mask=here)
    tl.store(kept + row, tl.sum(keep.to(tl.int64), 0))


@triton.jit
def gather_kernel(  # type: ignore[no-untyped-def]
    found, offsets, values, indices, BLOCK: tl.constexpr, GROUP: tl.constexpr
):
    """Write a row's candidates by ascending index: the place of each is how many have a smaller one."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(found.counts + row)
    if count <= found.capacity:
        entries = found.keys + row * found.capacity
        for start in range(0, count, GROUP):
            at = start + tl.arange(0, GROUP)
            key = tl.load(entries + at, mask=at < count, other=keys.EMPTY)
            place = tl.zeros((GROUP,), tl.int32)
            for other_start in range(0, count, BLOCK):
                other = other_start + tl.arange(0, BLOCK)
                other_key = tl.load(entries + other, mask=other < count, other=keys.EMPTY)
                other_index = tl.where(other_key == keys.EMPTY, 0x7FFFFFFF, keys.index_of(other_key))
                place += tl.sum((other_index[None, :] < keys.index_of(key)[:, None]).to(tl.int32), 1)
            wanted = (at < count) & (key != keys.EMPTY)
            target = tl.load(offsets + row) + place
            tl.store(values + target, keys.value_of(key).to(values.dtype.element_ty), mask=wanted)
            tl.store(indices + target, keys.index_of(key), mask=wanted)


def encode_threshold(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor | None,
    pre_bias: Tensor | None,
    threshold: Tensor,
    prepared: Tensor | None = None,
    *,
    precision: str = "exact",
    out: torch.dtype | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """CSR codes of the latents above their threshold: values [nnz], indices [nnz] int32, offsets [T + 1] int64.

    Values are in `out` or x.dtype.
    """
    out = out or x.dtype
    rows, latents = x.shape[0], W_enc.shape[0]
    limits = threshold.float().expand(latents).contiguous()
    if scale is not None:
        limits = limits_of(limits, scale.float())
    capacity = min(CAPACITY, power_of_2(latents))
    step = max(1, BUFFER_BYTES // (8 * capacity))
    of = encoder(x, W_enc, b_enc, pre_bias, precision)
    parts = [_part(of, slice(start, start + step), limits, capacity, out) for start in range(0, rows, step)]
    values = [part[0] for part in parts] or [x.new_empty(0, dtype=out)]
    indices = [part[1] for part in parts] or [torch.empty(0, dtype=torch.int32, device=x.device)]
    counts = [part[2] for part in parts]
    all_counts = torch.cat(counts) if counts else torch.zeros(0, dtype=torch.int64, device=x.device)
    return torch.cat(values), torch.cat(indices), torch.nn.functional.pad(all_counts.cumsum(0), (1, 0))


def _part(of: Encoder, rows: slice, limits: Tensor, capacity: int, out: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Values, indices and counts of some rows."""
    x = of.x[rows]
    found = screen(of.screen.rows(rows), limits, capacity, per_latent=True)
    kept = found.counts.long()
    if of.screen.rescored:
        rescore(of._replace(x=x), found._replace(counts=found.counts.clamp(max=capacity)))
        kept = _keep(found, limits)
    full = found.counts > capacity
    numbers = read(torch.stack([torch.where(full, 0, kept).sum(), full.sum()]), x.shape[0])
    count(numbers[1])
    dense_rows = full.nonzero()[:, 0] if numbers[1] else None
    codes = None
    if dense_rows is not None:
        codes = _dense(of, x[dense_rows], limits, out)
        kept[dense_rows] = codes[2]
    ends = kept.cumsum(0)
    starts = ends - kept
    total = numbers[0] + (0 if codes is None else codes[0].shape[0])
    values = torch.empty(total, dtype=out, device=x.device)
    indices = torch.empty(total, dtype=torch.int32, device=x.device)
    launch(
        gather_kernel,
        (x.shape[0],),
        x.device,
        num_warps=4,
        found=found,
        offsets=starts,
        values=values,
        indices=indices,
        BLOCK=64,
        GROUP=64,
    )
    if codes is not None and dense_rows is not None:
        within = torch.arange(codes[0].shape[0], device=x.device)
        first = codes[2].cumsum(0) - codes[2]
        target = within + (starts[dense_rows] - first).repeat_interleave(codes[2])
        values[target], indices[target] = codes[0], codes[1]
    return values, indices, kept


def _keep(found: Candidates, limits: Tensor) -> Tensor:
    rows, device = found.keys.shape[0], found.keys.device
    kept = torch.empty(rows, dtype=torch.int64, device=device)
    launch(
        keep_kernel,
        (rows,),
        device,
        found=found,
        threshold=limits,
        kept=kept,
        BLOCK=power_of_2(found.capacity, 32),
    )
    return kept


def _dense(of: Encoder, x: Tensor, limits: Tensor, out: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Values, indices and counts of rows that are not sparse."""
    values, indices, counts = [], [], []
    exactly = of.exactly()
    if of.screen.rescored and of.x.dtype == torch.float32:
        exactly = exactly._replace(float32_product="ieee")
    for part in chunks(x.shape[0], of.W.shape[0]):
        pre = dense(exactly._replace(x=x[part]))
        kept = (pre > limits) | pre.isnan()
        values.append(pre[kept].to(out))
        indices.append(kept.nonzero()[:, 1].int())
        counts.append(kept.sum(1))
    return torch.cat(values), torch.cat(indices), torch.cat(counts)
