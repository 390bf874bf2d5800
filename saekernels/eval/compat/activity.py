"""Sums over one SAE's activations in the peers' terms: norms, residuals, L0, L1 and how often each latent fires."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.sae.codes import Codes


class Activity:
    """Per-token sums (float64) and per-batch means, over the kept positions; F = number of latents."""

    def __init__(self, latents: int) -> None:
        self.tokens = 0
        self.batches = 0
        self.sums = dict.fromkeys(_PER_TOKEN, 0.0)
        self.batch_means = dict.fromkeys(_PER_BATCH, 0.0)
        self.saebench_variance: list[tuple[Tensor, float, float]] = []
        self.sum_x: Tensor | float = 0.0
        self.fires, self.positive_fires = (torch.zeros(latents, dtype=torch.float64) for _ in range(2))
        self.prompts, self.positive_prompts = (torch.zeros(latents, dtype=torch.float64) for _ in range(2))
        self.signed_sum = torch.zeros(latents, dtype=torch.float32)

    def add(self, x: Tensor, x_hat: Tensor, codes: Codes, kept: Tensor) -> None:
        """x, x_hat [B, S, d]; codes of shape [B, S]; kept [B, S] bool."""
        mask = kept.reshape(-1)
        rows, out = (t.reshape(-1, t.shape[-1])[mask].float() for t in (x, x_hat))
        norm_in, norm_out = rows.norm(dim=-1), out.norm(dim=-1)
        residual = (rows - out).square().sum(-1)
        dot = (rows * out).sum(-1)
        spread = (rows - rows.mean(0)).square().sum(-1)
        per_token = {
            "norm_in": norm_in,
            "norm_out": norm_out,
            "ratio": norm_out / torch.where(norm_in < 1e-4, torch.ones_like(norm_in), norm_in),
            "plain_ratio": norm_out / norm_in,
            "residual": residual,
            "error_norm": residual.sqrt(),
            "legacy": 1 - residual / spread,
            "cosine": dot / (norm_in * norm_out),
            "square": rows.square().sum(-1),
        }
        for name, values in per_token.items():
            self.sums[name] += float(values.double().sum())
        count = len(rows)
        self.sum_x = self.sum_x + rows.double().sum(0).cpu()
        errors = rows - out
        per_batch = {
            "bias": float(norm_out.square().mean() / dot.mean()),
            "explained": float(1 - errors.var(dim=0).sum() / rows.var(dim=0).sum()),
            "residual_over_tokens": float(residual.double().sum()) / count,
        }
        for name, value in per_batch.items():
            self.batch_means[name] += value
        squares = rows.square()
        self.saebench_variance.append((squares.mean(0), float(squares.sum(-1).mean()), float(residual.mean())))
        self.tokens += count
        self.batches += 1
        self._add_codes(codes, kept)

    def _add_codes(self, codes: Codes, kept: Tensor) -> None:
        flat = codes.to_csr()
        assert flat.offsets is not None
        latents = flat.indices.long()
        token = torch.arange(flat.tokens, device=latents.device).repeat_interleave(flat.offsets.diff())
        own = kept.reshape(-1).to(latents.device)[token]
        values, latents, prompt = flat.values[own].float(), latents[own], token[own] // kept.shape[1]
        self.sums["l0"] += float((values != 0).sum())
        self.sums["l1"] += float(values.abs().double().sum())
        self.sums["signed_l1"] += float(values.double().sum())
        self.signed_sum.index_add_(0, latents.cpu(), values.cpu())
        width = len(self.fires)
        for active, fires, prompts in (
            (values != 0, self.fires, self.prompts),
            (values > 0, self.positive_fires, self.positive_prompts),
        ):
            fires += torch.bincount(latents[active], minlength=width).cpu().double()
            for number in range(kept.shape[0]):
                here = latents[active & (prompt == number)]
                prompts[here.unique().cpu()] += 1

    def mean(self, name: str) -> float:
        """Mean over tokens of a per-token figure."""
        return self.sums[name] / max(1, self.tokens)

    def batch_mean(self, name: str) -> float:
        """Mean over batches of a per-batch figure."""
        return self.batch_means[name] / max(1, self.batches)


_PER_TOKEN = (
    "norm_in", "norm_out", "ratio", "plain_ratio", "residual", "error_norm", "legacy", "cosine", "square",
    "l0", "l1", "signed_l1",
)  # fmt: skip
_PER_BATCH = ("bias", "explained", "residual_over_tokens")
