"""What keeps codes sparse: penalties on the entries that there are, as scalars for any loop, and a running threshold.

Each is the mean over the rows of a batch. An entry that is not there has the value 0 and adds nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.ops import CsrCodes
from saekernels.sae.codes import row_sums


def l1_loss(codes: CsrCodes, norms: Tensor | None = None) -> Tensor:
    """The sum of a row's |values|, each times its latent's norm.

    codes: [T] rows. norms: [F], such as those of the decoder's rows (Conerly et al. 2024, "Update on how we train
    SAEs"), or None for plain L1, which needs rows of one norm. Differentiable with respect to both.
    """
    return _mean(_weighted(codes.values.abs(), codes, norms), codes)


def tanh_loss(codes: CsrCodes, scale: float, norms: Tensor | None = None) -> Tensor:
    """The sum over a row of tanh(scale * value * norm), which counts large values alike; arguments as of `l1_loss`."""
    if not scale > 0:
        raise ValueError(f"scale: got {scale!r}, need a number above 0")
    return _mean(torch.tanh(scale * _weighted(codes.values, codes, norms)), codes)


def l0_loss(active: Tensor, codes: CsrCodes, target: float | None = None) -> Tensor:
    """The number of a row's active latents, or, with a target, 2 / target * (that number - target)^2.

    active: [nnz], 1 or 0 for each entry, with `encode_jumprelu`'s gradients: its `active`.
    """
    if active.shape != codes.values.shape:
        raise ValueError(f"active: got shape {list(active.shape)}, need {list(codes.values.shape)}, that of the values")
    if target is None:
        return _mean(active, codes)
    if not target > 0:
        raise ValueError(f"target: got {target!r}, need a number above 0 or None")
    return (2 / target * (row_sums(active, codes.offsets) - target).square()).mean()


@torch.no_grad()
def running_threshold(threshold: Tensor, codes: CsrCodes, rate: float) -> Tensor:
    """(1 - rate) * threshold + rate * the least positive value: what BatchTopK's codes are cut at after training.

    threshold: a scalar, unchanged where no value is positive. Bussmann et al. 2024 (arXiv 2412.06410), section 3.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: got {rate!r}, need a number of 0 to 1")
    positive = codes.values[codes.values > 0]
    if not positive.numel():
        return threshold.clone()
    return threshold + rate * (positive.min().to(threshold) - threshold)


def _weighted(values: Tensor, codes: CsrCodes, norms: Tensor | None) -> Tensor:
    return values if norms is None else values * norms.index_select(0, codes.indices.long())


def _mean(terms: Tensor, codes: CsrCodes) -> Tensor:
    return row_sums(terms, codes.offsets).mean()
