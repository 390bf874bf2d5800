"""screen: one product of x and W_enc whose epilogue appends the latents that reach a threshold, and stores nothing
else.

The threshold is one per row (top-k: what surely contains the k best) or per latent (JumpReLU, ReLU, BatchTopK).
Where the product is cheaper than the scores asked for, what is compared is the most that a score can be: the
screened score plus its reach, row_norm * latent_error + row_error * latent_norm + latent_slack (`bounds`). A counter
per row runs on past the capacity, so overflow cannot hide. Candidates come in no particular order; `select` and
`gather` put them into one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import configs
from saekernels.backends.triton.encode.append import append_branching, append_masked
from saekernels.backends.triton.launch import architecture, launch
from saekernels.backends.triton.product import grid, operands, product, tile_of

_ROW_VECTORS = ("row_scale", "row_norm", "row_error")
_LATENT_VECTORS = ("bias", "latent_scale", "latent_norm", "latent_error", "latent_slack")


class Operands(NamedTuple):
    """What is multiplied, and what a product says of the score asked for.

    Attributes:
        x: [T, d]; W: [F, d], of one dtype.
        bias: [F] float32 or None, added to the product.
        row_scale, latent_scale: [T], [F] float32: factors of quantised operands; None: 1.
        row_norm, row_error [T], latent_norm, latent_error, latent_slack [F]: float32, for the reach; None: the product
            is the score itself.
        float32_product: how float32 operands are multiplied.
    """

    x: Tensor
    W: Tensor
    bias: Tensor | None = None
    row_scale: Tensor | None = None
    latent_scale: Tensor | None = None
    row_norm: Tensor | None = None
    row_error: Tensor | None = None
    latent_norm: Tensor | None = None
    latent_error: Tensor | None = None
    latent_slack: Tensor | None = None
    float32_product: str = "tf32"

    @property
    def rescored(self) -> bool:
        """Whether candidates are only bounded, not scored, by the product."""
        return self.row_norm is not None

    def every(self, step: int) -> Operands:
        """The operands of each step-th latent, from the middle of the first step on: views, where latents are rows."""
        first = step // 2
        vectors: dict[str, Any] = {
            name: None if (vector := getattr(self, name)) is None else vector[first::step] for name in _LATENT_VECTORS
        }
        W = self.W[first::step]
        # Single elements far apart would each cost a whole sector of memory traffic.
        return self._replace(W=W if W.stride(1) == 1 else W.contiguous(), **vectors)

    def rows(self, part: slice) -> Operands:
        """The operands of some rows of x: views."""
        vectors: dict[str, Any] = {
            name: None if (vector := getattr(self, name)) is None else vector[part] for name in _ROW_VECTORS
        }
        return self._replace(x=self.x[part], **vectors)

    def vectors(self) -> dict[str, Any]:
        """Arguments of `scores` besides the product."""
        vectors = {name: getattr(self, name) for name in (*_ROW_VECTORS, *_LATENT_VECTORS)}
        latent_vectors = [vectors[name] for name in _LATENT_VECTORS]
        strides = {vector.stride(0) for vector in latent_vectors if vector is not None and vector.shape[0] > 1}
        if len(strides) > 1:
            raise ValueError(f"vectors of latents: got strides {sorted(strides)}, need one")
        return {
            **vectors,
            "stride_latent": strides.pop() if strides else 1,
            "BIASED": self.bias is not None,
            "SCALED": self.row_scale is not None,
            "REACH": self.rescored,
        }


@triton.jit
def scores_of(  # type: ignore[no-untyped-def]
    acc,
    rows,
    columns,
    T,
    F,
    bias,
    row_scale,
    latent_scale,
    stride_latent,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
):
    """[BM, BN] scores of a product."""
    at = columns * stride_latent
    if SCALED:
        scale = tl.load(latent_scale + at, mask=columns < F, other=0.0)
        acc = acc * tl.load(row_scale + rows, mask=rows < T, other=0.0)[:, None] * scale[None, :]
    if BIASED:
        acc += tl.load(bias + at, mask=columns < F, other=0.0)[None, :]
    return acc


@triton.jit
def reach_of(  # type: ignore[no-untyped-def]
    rows, columns, T, F, row_norm, row_error, latent_norm, latent_error, latent_slack, stride_latent
):
    """[BM, BN]: how far a score can be from its screened value."""
    at = columns * stride_latent
    norm = tl.load(latent_norm + at, mask=columns < F, other=0.0)[None, :]
    error = tl.load(latent_error + at, mask=columns < F, other=0.0)[None, :]
    slack = tl.load(latent_slack + at, mask=columns < F, other=0.0)[None, :]
    row_n = tl.load(row_norm + rows, mask=rows < T, other=0.0)[:, None]
    row_e = tl.load(row_error + rows, mask=rows < T, other=0.0)[:, None]
    return row_n * error + (row_e * norm + slack)


@triton.jit
def screen_kernel(  # type: ignore[no-untyped-def]
    x,
    W,
    threshold,
    candidates,
    counts,
    bias,
    row_scale,
    latent_scale,
    row_norm,
    row_error,
    latent_norm,
    latent_error,
    latent_slack,
    T,
    F,
    D,
    stride_xt,
    stride_xd,
    stride_wf,
    stride_wd,
    stride_latent,
    capacity,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    REACH: tl.constexpr,
    ABS: tl.constexpr,
    PER_LATENT: tl.constexpr,
    BRANCH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    PRODUCT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    tile_m, tile_n = tile_of(tl.program_id(0), T, F, BM, BN, GROUP)
    acc = product(
        x, W, tile_m, tile_n, T, F, D, stride_xt, stride_xd, stride_wf, stride_wd,
        BM, BN, BK, EVEN, TMA, PRODUCT, UPCAST,
    )  # fmt: skip
    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    score = scores_of(acc, rows, columns, T, F, bias, row_scale, latent_scale, stride_latent, BIASED, SCALED)
    if REACH:
        score = tl.abs(score) if ABS else score
        score += reach_of(
            rows, columns, T, F, row_norm, row_error, latent_norm, latent_error, latent_slack, stride_latent
        )
    # What is rescored gets its sign then, and is compared as it is.
    signed: tl.constexpr = ABS and not REACH
    if BRANCH:
        append_branching(
            score, threshold, tile_m * BM, tile_n * BN, T, F, candidates, counts, capacity, signed, PER_LATENT, BM, BN
        )
    else:
        append_masked(
            score, threshold, tile_m * BM, tile_n * BN, T, F, candidates, counts, capacity, signed, PER_LATENT, BM, BN
        )


def screen(
    of: Operands, threshold: Tensor, capacity: int, *, per_latent: bool, absolute: bool = False
) -> tuple[Tensor, Tensor]:
    """Candidate keys [T, capacity] int64, in any order, and how many there were, [T] int32, which may exceed capacity.

    Args:
        threshold: float32, [F] with `per_latent` (strictly above counts), else [T] (at least).
        absolute: compare magnitudes.
    """
    rows, device = of.x.shape[0], of.x.device
    config = configs.lookup("screen", architecture(device), of.x.dtype, of.x.shape[1])
    candidates = torch.empty(rows, capacity, dtype=torch.int64, device=device)
    counts = torch.zeros(rows, dtype=torch.int32, device=device)
    arguments, (x, W) = operands(of.x, of.W, config, of.float32_product)
    launch(
        screen_kernel,
        grid(rows, of.W.shape[0], config),
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        x=x,
        W=W,
        threshold=threshold,
        candidates=candidates,
        counts=counts,
        capacity=capacity,
        ABS=absolute,
        PER_LATENT=per_latent,
        BRANCH=config.has("branch"),
        GROUP=config.group,
        **arguments,
        **of.vectors(),
    )
    return candidates, counts
