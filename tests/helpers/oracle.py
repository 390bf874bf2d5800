"""What the ops must answer, computed another way: dense float64, stable sorts, no kernels of ours."""

from __future__ import annotations

import torch
from torch import Tensor

UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 2.0**-53}


def pre_activations(x: Tensor, W: Tensor, b: Tensor | None = None, pre_bias: Tensor | None = None) -> Tensor:
    """(x - pre_bias) @ W.T + b in float64, the subtraction rounded to float32 as the contract says: [T, F]."""
    centred = x if pre_bias is None else x.to(wide(x)) - pre_bias.to(wide(x))
    out = centred.double() @ W.double().T
    return out if b is None else out + b.double()


def wide(x: Tensor) -> torch.dtype:
    """The dtype of sums."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def dot_error(x: Tensor, W: Tensor, b: Tensor | None = None, pre_bias: Tensor | None = None) -> Tensor:
    """A rigorous bound [T, 1] on |computed - true| for any order of summation: (d + 2) u (|x| . |w| + |b|)."""
    centred = x.double() if pre_bias is None else (x.to(wide(x)) - pre_bias.to(wide(x))).double()
    size = centred.abs() @ W.double().abs().T
    if b is not None:
        size = size + b.double().abs()
    return (x.shape[1] + 2) * UNIT_ROUNDOFF[wide(x)] * 1.01 * size.amax(1, keepdim=True) + (x.shape[1] + 2) * 2.0**-149


def rounding(value: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding a value near `value` to dtype may move it by, subnormals included."""
    return 1.01 * UNIT_ROUNDOFF[dtype] * value.abs().clamp(min=torch.finfo(dtype).tiny)


def order(scores: Tensor) -> Tensor:
    """Latents of each row from largest to smallest: NaN first, then value descending, ties by ascending index."""
    rank = torch.where(scores.isnan(), torch.inf, scores)
    # Two stable passes: by value, then NaN before everything.
    by_value = torch.sort(rank, dim=-1, descending=True, stable=True).indices
    nan_first = scores.isnan().gather(-1, by_value).int().sort(dim=-1, descending=True, stable=True).indices
    return by_value.gather(-1, nan_first)


def check_top_k(
    values: Tensor, indices: Tensor, x: Tensor, W: Tensor, b: Tensor | None, pre_bias: Tensor | None, activation: str
) -> None:
    """The top-k contract for finite inputs, up to the rounding of float32 sums."""
    k = values.shape[1]
    pre = pre_activations(x, W, b, pre_bias)
    score = pre.abs() if activation == "abs" else pre
    slack = dot_error(x, W, b, pre_bias)
    chosen = indices.long()
    assert indices.dtype == torch.int32
    assert values.dtype == x.dtype
    assert ((chosen >= 0) & (chosen < W.shape[0])).all()
    assert (chosen.sort(1).values.diff(dim=1) > 0).all(), "repeated indices"

    expected = pre.gather(1, chosen)
    expected = expected.clamp(min=0) if activation == "relu" else expected
    assert ((values.double() - expected).abs() <= slack + rounding(expected, x.dtype)).all(), (
        "values are not those of their latents"
    )

    best = score.sort(1, descending=True).values[:, :k]
    got = score.gather(1, chosen)
    assert ((got.sort(1, descending=True).values - best).abs() <= 2 * slack).all(), "another multiset of scores"
    assert (got.diff(dim=1) <= 2 * slack).all(), "not in descending order"
    excluded = score.scatter(1, chosen, -torch.inf).amax(1)
    assert (excluded <= got.amin(1) + 2 * slack[:, 0]).all(), "an excluded latent beats a chosen one"


def bits(*tensors: Tensor) -> list[Tensor]:
    """Tensors as integers, so that NaN equals NaN and -0.0 differs from +0.0."""
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [t.contiguous().view(sizes[t.element_size()]) if t.is_floating_point() else t for t in tensors]


def same_bits(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    """Whether two results are equal bit for bit."""
    return all(torch.equal(p, q) for p, q in zip(bits(*a), bits(*b), strict=True))
