"""SAELens', SAEBench's and dictionary_learning's formulas, from sums over tokens and batches.

Right or wrong, and named where they are wrong (docs/how-to/compat.md). Versions: SAELens 6.54.12, SAEBench 0.6.0,
dictionary_learning 0.1.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from saekernels.eval.compat.activity import Activity
from saekernels.sae.module import SAE

Peer = Literal["saelens", "saebench", "dictionary_learning"]
PEERS: tuple[Peer, ...] = ("saelens", "saebench", "dictionary_learning")


@dataclass
class PeerMetrics:
    """One SAE's metrics under a peer's names; featurewise: lists of F numbers, where the peer has them."""

    peer: str
    entry: str
    metrics: dict[str, dict[str, float]]
    featurewise: dict[str, list[float]] = field(default_factory=dict)


class Losses:
    """Sums of what is averaged over tokens, and of what is averaged over batches."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.batch: dict[str, list[float]] = {}

    def add(self, name: str, values: Tensor, kept: Tensor) -> None:
        """Count one batch of the loss of this name: its values where `kept`, bool of the same shape."""
        chosen = values[kept].double()
        self.sums[name] = self.sums.get(name, 0.0) + float(chosen.sum())
        self.counts[name] = self.counts.get(name, 0) + len(chosen)
        self.batch.setdefault(name, []).append(float(chosen.mean()))

    def mean(self, name: str) -> float:
        """The mean over all values of this name; 0 for none."""
        return self.sums[name] / max(1, self.counts[name])


def _saelens(entry: str, sae: SAE, losses: Losses, seen: Activity) -> PeerMetrics:
    zero, spliced, clean = (losses.mean(name) for name in ("zero", "sae", "clean"))
    kl, zero_kl = losses.mean("kl"), losses.mean("zero_kl")
    mean = torch.as_tensor(seen.sum_x) / max(1, seen.tokens)
    variance = seen.mean("square") - float(mean.square().sum())
    metrics = {
        "model_behavior_preservation": {
            "kl_div_score": (zero_kl - kl) / zero_kl, "kl_div_with_ablation": zero_kl, "kl_div_with_sae": kl,
        },
        "model_performance_preservation": {
            "ce_loss_score": (zero - spliced) / (zero - clean), "ce_loss_with_ablation": zero,
            "ce_loss_with_sae": spliced, "ce_loss_without_sae": clean,
        },
        "reconstruction_quality": {
            "explained_variance": 1 - seen.mean("residual") / variance,
            "explained_variance_legacy": seen.mean("legacy"), "mse": seen.mean("residual"),
            "cossim": seen.mean("cosine"),
        },
        "shrinkage": {
            "l2_norm_in": seen.mean("norm_in"), "l2_norm_out": seen.mean("norm_out"), "l2_ratio": seen.mean("ratio"),
            "relative_reconstruction_bias": seen.batch_mean("bias"),
        },
        "sparsity": {"l0": seen.mean("l0"), "l1": seen.mean("l1")},
    }  # fmt: skip
    return PeerMetrics("saelens", entry, metrics, _featurewise(sae, seen.fires, seen.prompts, seen.tokens))


def _saebench(entry: str, sae: SAE, losses: Losses, seen: Activity) -> PeerMetrics:
    found = _saelens(entry, sae, losses, seen)
    # E[x^2] where E[x] is meant, squared dimension by dimension and averaged by accident of torch.cat (SAEBench 0.6).
    squares = torch.cat([one[0] for one in seen.saebench_variance]).mean()
    total = sum(one[1] for one in seen.saebench_variance) / max(1, seen.batches) - float(squares) ** 2
    residual = sum(one[2] for one in seen.saebench_variance) / max(1, seen.batches)
    found.metrics["reconstruction_quality"]["explained_variance"] = 1 - residual / total
    # Divided by the batch's tokens once more than a mean is.
    found.metrics["reconstruction_quality"]["mse"] = seen.batch_means["residual_over_tokens"] / max(1, seen.tokens)
    found.metrics["sparsity"]["l1"] = seen.mean("signed_l1")
    featurewise = _featurewise(sae, seen.positive_fires, seen.positive_prompts, seen.tokens)
    return PeerMetrics("saebench", entry, found.metrics, featurewise)


def _dictionary_learning(entry: str, sae: SAE, losses: Losses, seen: Activity) -> PeerMetrics:
    batch = {name: losses.batch[name] for name in ("clean", "sae", "zero")}
    recovered = [(s - z) / (c - z) for c, s, z in zip(batch["clean"], batch["sae"], batch["zero"], strict=True)]
    mean = {name: sum(values) / len(values) for name, values in batch.items()}
    metrics = {
        "loss_original": mean["clean"], "loss_reconstructed": mean["sae"], "loss_zero": mean["zero"],
        "frac_recovered": sum(recovered) / len(recovered),
        "l2_loss": seen.mean("error_norm"), "l1_loss": seen.mean("l1"), "l0": seen.mean("l0"),
        "frac_variance_explained": seen.batch_mean("explained"), "cossim": seen.mean("cosine"),
        "l2_ratio": seen.mean("plain_ratio"), "relative_reconstruction_bias": seen.batch_mean("bias"),
        "frac_alive": float((seen.signed_sum != 0).double().mean()),
    }  # fmt: skip
    return PeerMetrics("dictionary_learning", entry, {"evaluation": metrics})


def _featurewise(sae: SAE, fires: Tensor, prompts: Tensor, tokens: int) -> dict[str, list[float]]:
    """What SAELens and SAEBench list per latent; 0 / 0 is NaN, as there."""
    encoder, decoder = getattr(sae, "W_enc", None), sae.W_dec.float()
    made = {
        "feature_density": (fires / max(1, tokens)).tolist(),
        "consistent_activation_heuristic": (fires / prompts).tolist(),
    }
    if encoder is not None:
        rows = encoder.float()
        made["encoder_norm"] = rows.norm(dim=-1).tolist()
        made["encoder_decoder_cosine_sim"] = torch.nn.functional.cosine_similarity(rows, decoder, dim=-1).tolist()
    bias = getattr(sae, "b_enc", None)
    if bias is not None:
        made["encoder_bias"] = bias.float().tolist()
    return made


FORMULAS: dict[str, Callable[[str, SAE, Losses, Activity], PeerMetrics]] = {
    "saelens": _saelens,
    "saebench": _saebench,
    "dictionary_learning": _dictionary_learning,
}
