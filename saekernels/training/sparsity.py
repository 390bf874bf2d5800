"""What keeps codes sparse: penalties on the entries that there are, as scalars for any loop, and a running threshold.

Each is the mean over the rows of a batch. An entry that is not there has the value 0 and adds nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saekernels.ops import CsrCodes, _check
from saekernels.sae.codes import row_sums


def l1_loss(codes: CsrCodes, norms: Tensor | None = None) -> Tensor:
    """The sum of a row's |values|, each times its latent's norm.

    codes: [T] rows. norms: [F], such as those of the decoder's rows (Conerly et al. 2024, "Update on how we train
    SAEs"), or None for plain L1, which needs rows of one norm. Differentiable with respect to both.
    """
    _check_codes(codes, norms)
    return _mean(_weighted(codes.values.abs(), codes, norms), codes)


def tanh_loss(codes: CsrCodes, scale: float, norms: Tensor | None = None) -> Tensor:
    """The sum over a row of tanh(scale * value * norm), which counts large values alike; arguments as of `l1_loss`."""
    _check_codes(codes, norms)
    _above_zero("scale", scale)
    return _mean(torch.tanh(scale * _weighted(codes.values, codes, norms)), codes)


def l0_loss(active: Tensor, codes: CsrCodes, target: float | None = None) -> Tensor:
    """The number of a row's active latents, or, with a target, 2 / target * (that number - target)^2.

    active: [nnz], 1 or 0 for each entry, with `encode_jumprelu`'s gradients: its `active`.
    """
    _check_codes(codes)
    _check.tensor("active", active)
    if not active.dtype.is_floating_point:
        raise TypeError(f"active: got dtype {active.dtype}, need 1 or 0 as floating-point numbers")
    if active.shape != codes.values.shape:
        raise ValueError(f"active: got shape {list(active.shape)}, need {list(codes.values.shape)}, that of the values")
    if target is None:
        return _mean(active, codes)
    _above_zero("target", target)
    return (2 / target * (row_sums(active, codes.offsets) - target).square()).mean()


@torch.no_grad()
def running_threshold(threshold: Tensor, codes: CsrCodes, rate: float) -> Tensor:
    """(1 - rate) * threshold + rate * the least positive value: what BatchTopK's codes are cut at after training.

    threshold: a scalar, unchanged where no value is positive. Bussmann et al. 2024 (arXiv 2412.06410), section 3.
    """
    _check_codes(codes)
    _check.tensor("threshold", threshold)
    if threshold.dim() or not threshold.dtype.is_floating_point:
        raise ValueError(
            f"threshold: got {threshold.dtype} of shape {list(threshold.shape)}, need a floating scalar []"
        )
    _check.scalar("rate", rate, float)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: got {rate!r}, need a number of 0 to 1")
    positive = codes.values[codes.values > 0]
    if not positive.numel():
        return threshold.clone()
    return threshold + rate * (positive.min().to(threshold) - threshold)


def _above_zero(name: str, value: object) -> None:
    _check.scalar(name, value, float)
    if not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise ValueError(f"{name}: got {value!r}, need a finite number above 0")


def _check_codes(codes: object, norms: object = None) -> None:
    if not isinstance(codes, CsrCodes):
        raise TypeError(f"codes: got {type(codes).__name__}, need CsrCodes")
    if len(codes.offsets) < 2:
        raise ValueError("codes: got no row, need at least one to take the mean of")
    if norms is None:
        return
    _check.tensor("norms", norms)
    assert isinstance(norms, torch.Tensor)
    if norms.dim() != 1 or not norms.dtype.is_floating_point:
        raise ValueError(f"norms: got {norms.dtype} of shape {list(norms.shape)}, need floating-point numbers [F]")
    _check.indices_in_range(codes.indices, norms.shape[0], "norms: latents of codes")


def _weighted(values: Tensor, codes: CsrCodes, norms: Tensor | None) -> Tensor:
    return values if norms is None else values * norms.index_select(0, codes.indices.long())


def _mean(terms: Tensor, codes: CsrCodes) -> Tensor:
    return row_sums(terms, codes.offsets).mean()
