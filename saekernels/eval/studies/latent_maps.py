"""Linear maps from the latents of one SAE to those of another, from streamed second moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saekernels.ops import topk
from saekernels.sae.codes import Codes

_ROWS_AT_ONCE = 512
_COLUMNS_AT_ONCE = 256


class LatentMoments:
    """Counts, sums and products of the latents of two SAEs over the same tokens, fp32 products.

    sources [A], targets [B]: the latents that take part (all others are left out); memory A^2 + A B floats.
    """

    def __init__(self, sources: Tensor, targets: Tensor, n_sources: int, n_targets: int) -> None:
        self.sources, self.targets = sources.long(), targets.long()
        self.n_sources, self.n_targets = n_sources, n_targets
        self.count = 0
        self.sum_a = torch.zeros(len(sources), dtype=torch.float64)
        self.sum_b, self.square_b = (torch.zeros(len(targets), dtype=torch.float64) for _ in range(2))
        self.aa = torch.zeros(len(sources), len(sources))
        self.ab = torch.zeros(len(sources), len(targets))

    def add(self, a: Tensor, b: Tensor) -> None:
        """a [n, A], b [n, B]: dense values of the latents that take part."""
        for rows, outs in zip(a.float().cpu().split(_ROWS_AT_ONCE), b.float().cpu().split(_ROWS_AT_ONCE), strict=True):
            self.aa += rows.T @ rows
            self.ab += rows.T @ outs
            self.sum_a += rows.double().sum(0)
            self.sum_b += outs.double().sum(0)
            self.square_b += outs.double().square().sum(0)
        self.count += len(a)

    def merge(self, other: LatentMoments) -> None:
        """Add what another has of the same latents."""
        for name in ("count", "sum_a", "sum_b", "square_b", "aa", "ab"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class LatentMap:
    """z_b = bias + sum over `entries` upstream latents of each target: weights and indices [B, m] into `sources`.

    explained: share of the variance of the target latents that the map accounts for on the text it was fitted on.
    """

    sources: Tensor
    targets: Tensor
    n_targets: int
    indices: Tensor
    weights: Tensor
    bias: Tensor
    explained: float

    def predict(self, a: Tensor) -> Tensor:
        """[n, B] from a [n, A], the dense values of `sources`."""
        dense = self._matrix()
        return a.float() @ dense.to(a.device) + self.bias.to(a.device)

    def _matrix(self) -> Tensor:
        dense = torch.zeros(len(self.sources), len(self.targets))
        return dense.scatter_add_(0, self.indices.T, self.weights.T)

    def codes(self, a: Tensor, k: int, shape: torch.Size, dtype: torch.dtype = torch.float32) -> Codes:
        """The k largest positive predictions of each token as codes of the downstream SAE, of this leading shape.

        dtype: the SAE's.
        """
        values, at = topk(self.predict(a).clamp_min(0), min(k, len(self.targets)))
        latents = self.targets.to(at.device)[at.long()].int()
        size = (*shape, values.shape[-1])
        return Codes(values.to(dtype).view(size), latents.view(size), None, shape, self.n_targets)


def select_dense(codes: Codes, latents: Tensor) -> Tensor:
    """[T, len(latents)]: the values of these latents, 0 where not active."""
    flat = codes.to_csr()
    assert flat.offsets is not None
    place = torch.full((codes.n_latents,), -1, dtype=torch.int64, device=flat.values.device)
    place[latents.to(place.device)] = torch.arange(len(latents), device=place.device)
    rows = torch.arange(flat.tokens, device=place.device).repeat_interleave(flat.offsets.diff())
    columns = place[flat.indices.long()]
    own = columns >= 0
    made = flat.values.new_zeros(flat.tokens, len(latents))
    return made.index_put_((rows[own], columns[own]), flat.values[own], accumulate=True)


def fit_map(moments: LatentMoments, entries: int, ridge: float = 1e-3, chosen: Tensor | None = None) -> LatentMap:
    """The sparse ridge map: for each target latent, the `entries` most correlated sources, then ridge among them.

    ridge: relative to the mean variance of the chosen sources. entries=1 is the degenerate control: one cause each;
    entries=0 predicts the mean. chosen: [B, m] int64, sources to take instead of the most correlated ones.

    Raises ValueError without rows or entries.
    """
    if moments.count < 2 or entries < 0:
        raise ValueError(f"moments: need at least 2 rows and 0 entries, got {moments.count} and {entries}")
    n = moments.count
    mean_a, mean_b = moments.sum_a / n, moments.sum_b / n
    covariance = moments.aa / n - torch.outer(mean_a, mean_a).float()
    cross = moments.ab / n - torch.outer(mean_a, mean_b).float()
    variance = (moments.square_b / n - mean_b.square()).clamp_min(0)
    if chosen is None:
        score = cross.square() / covariance.diagonal().clamp_min(1e-12)[:, None]
        m = min(max(entries, 1), len(moments.sources))
        chosen = score.topk(m, dim=0).indices.T.contiguous()
    weights = torch.empty(chosen.shape)
    for start in range(0, len(chosen), _COLUMNS_AT_ONCE):
        at = chosen[start : start + _COLUMNS_AT_ONCE]
        gram = covariance[at[:, :, None], at[:, None, :]].double()
        loading = ridge * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        gram.diagonal(dim1=1, dim2=2).add_(loading[:, None])
        right = cross[at, torch.arange(start, start + len(at))[:, None]].double()
        weights[start : start + len(at)] = torch.linalg.solve(gram, right.unsqueeze(-1)).squeeze(-1).float()
    weights *= entries > 0
    bias = mean_b - (weights.double() * mean_a[chosen]).sum(1)
    gained = (weights.double() * cross[chosen, torch.arange(len(chosen))[:, None]].double()).sum(1)
    explained = float(gained.sum() / variance.sum().clamp_min(1e-30))
    return LatentMap(moments.sources, moments.targets, moments.n_targets, chosen, weights, bias.float(), explained)
