"""Which latents of a crosscoder are active: pre-activations times norms of decoder rows, against thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from saekernels.ops import encode_at
from saekernels.ops.encode_threshold import CsrCodes

NORMS = ("none", "sum", "concatenated", "mixed", "per_head")


def check_norms(norms: str, alphas: tuple[float, float] | None) -> None:
    """ValueError for a rule that does not exist, or alphas that do not go with it."""
    if norms not in NORMS:
        raise ValueError(f"norms: got {norms!r:.40}, need one of {', '.join(NORMS)}")
    if norms != "mixed":
        if alphas is not None:
            raise ValueError(f"alphas: got {alphas!r:.60} with norms={norms!r}, need them for 'mixed' alone")
        return
    if not isinstance(alphas, tuple | list) or len(alphas) != 2:
        raise ValueError(f"alphas: got {alphas!r:.60}, need (of the concatenated norm, of the sum) for norms='mixed'")
    sound = [isinstance(one, int | float) and 0 <= one < math.inf and not isinstance(one, bool) for one in alphas]
    if not all(sound) or not any(alphas):
        raise ValueError(f"alphas: got {alphas!r:.60}, need two finite numbers of at least 0, not both 0")


def head_values(
    name: str, value: Tensor | Sequence[float] | None, heads: int, d: int, weights: Tensor
) -> Tensor | None:
    """[H, 1] or [H, d] of what is said of every head, beside these weights in at least float32; None for None.

    Raises ValueError for another shape, for what is not finite, and for scales that are not above 0.
    """
    if value is None:
        return None
    dtype = torch.promote_types(weights.dtype, torch.float32)
    mean = name == "input_mean"
    made = torch.as_tensor(value, dtype=dtype, device=None if weights.is_meta else weights.device).detach()
    made = made[:, None] if made.dim() == 1 and not mean else made
    if made.dim() != 2 or made.shape[0] != heads or made.shape[1] not in ((d,) if mean else (1, d)):
        need = f"[{heads}, {d}]" + ("" if mean else f" or [{heads}]")
        raise ValueError(f"{name}: got shape {list(torch.as_tensor(value).shape)}, need {need}")
    if not bool(made.isfinite().all()) or not (mean or bool((made > 0).all())):
        raise ValueError(
            f"{name}: got values of {float(made.min()):g} to {float(made.max()):g}, need finite numbers"
            + ("" if mean else " above 0")
        )
    return made.clone()


def decoder_norms(W_dec: Tensor, heads: int, norms: str, alphas: tuple[float, float] | None) -> Tensor | None:
    """Of W_dec [F, H * d] what pre-activations are multiplied by: [F], [H, F] for "per_head", None for "none"."""
    if norms == "none":
        return None
    wide = torch.promote_types(W_dec.dtype, torch.float32)
    rows = W_dec.view(len(W_dec), heads, -1)
    whole = torch.linalg.vector_norm(W_dec, dim=1, dtype=wide) if norms in ("concatenated", "mixed") else None
    if norms == "concatenated":
        return whole
    each = torch.linalg.vector_norm(rows, dim=2, dtype=wide)
    if norms == "per_head":
        return each.T.contiguous()
    total = each.sum(1)
    if whole is None or alphas is None:
        return total
    return alphas[0] * whole + alphas[1] * total


def folded(threshold: Tensor, norms: Tensor | None) -> Tensor:
    """Thresholds of h itself, by which just what has h > 0 and h * norm > threshold is above, the product rounded.

    threshold: [], [F] or [H, 1]; norms: [F], [H, F] or None. The quotient's neighbours are looked at, so that its
    rounding decides nothing. A norm of 0 gives +inf: such a latent is dead.
    """
    if norms is None:
        return threshold.clamp(min=0)
    infinity = norms.new_full((), torch.inf)
    threshold = threshold.to(norms.dtype)
    floors = threshold / norms
    larger = torch.nextafter(floors, infinity)
    floors = torch.where(larger * norms <= threshold, larger, floors)
    floors = torch.where(floors * norms > threshold, torch.nextafter(floors, -infinity), floors)
    return torch.where(norms == 0, infinity, floors.clamp(min=0))


def above_their_floors(
    found: CsrCodes, rows: Tensor, W_enc: Tensor, b_enc: Tensor, floors: Tensor
) -> Iterator[CsrCodes]:
    """For each head the entries above its own floors [H, F], of codes that have all of them.

    Values in half precision are rounded, which could move them over a floor; their floors are held against what was
    accumulated. rows: [T, width], what the codes were made of.
    """
    values, indices, offsets = found
    pre = values.detach()
    if pre.dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad():
            pre = encode_at(rows, W_enc, b_enc, indices, offsets, wide=True)
    latents = indices.long()
    for own in floors:
        keep = ~(pre <= own[latents])
        yield CsrCodes(values[keep], indices[keep], pad(keep.cumsum(0), (1, 0))[offsets])
