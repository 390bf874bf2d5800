"""SAEBench's Core result (schema of SAEBench 0.6.0) from metrics by its formulas."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saekernels.eval.compat.formulas import PeerMetrics
from saekernels.sae.module import SAE

_ROWS_AT_ONCE = 512
_DIGITS = 10
_DETAILS = (
    "feature_density", "consistent_activation_heuristic", "encoder_bias", "encoder_norm", "encoder_decoder_cosine_sim",
    "max_decoder_cosine_sim", "max_encoder_cosine_sim",
)  # fmt: skip


def core_output(
    found: PeerMetrics,
    sae: SAE,
    *,
    model_name: str,
    release: str,
    sae_id: str,
    dataset: str,
    context: int,
    batch_size: int,
    batches: int,
    dtype: str = "float32",
    keeps_special: bool = False,
    lens_version: str = "",
) -> dict[str, Any]:
    """One SAE's Core evaluation as SAEBench writes it, JSON-ready; NaN is -1 there.

    Args:
        found: what `peer_metrics("saebench", ...)` gave for this SAE.
        batches, batch_size, context: how many batches of how many prompts of how many tokens were evaluated.
        keeps_special: whether special positions kept their activation in the splice.
    """
    tokens = batches * batch_size * context
    config = {
        "model_name": model_name,
        "llm_dtype": dtype,
        "batch_size_prompts": batch_size,
        "n_eval_reconstruction_batches": batches,
        "n_eval_sparsity_variance_batches": batches,
        "dataset": dataset,
        "context_size": context,
        **dict.fromkeys(_COMPUTED, True),
        "exclude_special_tokens_from_reconstruction": keeps_special,
        "verbose": False,
    }
    columns = {**found.featurewise, "max_encoder_cosine_sim": max_cosine(sae.W_enc)}
    columns["max_decoder_cosine_sim"] = max_cosine(sae.W_dec)
    columns.setdefault("encoder_bias", [0.0] * sae.n_latents)
    metrics: dict[str, Any] = {name: dict(group) for name, group in found.metrics.items()}
    stats = dict.fromkeys(("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"), tokens)
    metrics["token_stats"] = stats
    metrics["misc_metrics"] = _misc(columns)
    details = [{"index": i, **{name: _rounded(columns[name][i]) for name in _DETAILS}} for i in range(sae.n_latents)]
    return {
        "eval_type_id": "core",
        "eval_config": config,
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": _without_nan(metrics),
        "eval_result_details": details,
        "sae_bench_commit_hash": "saekernels: SAEBench 0.6.0 formulas",
        "sae_lens_id": sae_id,
        "sae_lens_release_id": release,
        "sae_lens_version": lens_version,
        "sae_cfg_dict": {"architecture": sae.architecture, "d_in": sae.d_in, "d_sae": sae.n_latents},
        "eval_result_unstructured": {},
    }


_COMPUTED = (
    "compute_kl", "compute_ce_loss", "compute_l2_norms", "compute_sparsity_metrics", "compute_variance_metrics",
    "compute_featurewise_density_statistics", "compute_featurewise_weight_based_metrics",
)  # fmt: skip


def result_name(release: str, sae_id: str) -> str:
    """The file name that SAEBench looks for."""
    return f"{release}_{sae_id}_eval_results.json".replace("/", "_")


def max_cosine(rows: Tensor) -> list[float]:
    """[F]: of each row, the largest cosine with another row. Peak memory 512 x F."""
    unit = torch.nn.functional.normalize(rows.detach().float(), dim=1)
    best = []
    for start in range(0, len(unit), _ROWS_AT_ONCE):
        part = unit[start : start + _ROWS_AT_ONCE] @ unit.T
        at = torch.arange(len(part), device=part.device)
        part[at, start + at] = -torch.inf
        best.append(part.amax(1))
    return torch.cat(best).tolist()


def _misc(columns: Mapping[str, list[float]]) -> dict[str, float]:
    density = torch.tensor(columns["feature_density"])
    total = float(density.sum())
    made = {
        f"average_{name}": float(torch.tensor(columns[name]).mean())
        for name in ("max_encoder_cosine_sim", "max_decoder_cosine_sim")
    }
    made["frac_alive"] = float((density > 0).float().mean())
    for name, share in (("1", 0.01), ("10", 0.1)):
        over = density > share
        made[f"freq_over_{name}_percent"] = float(over.float().mean())
        made[f"normalized_freq_over_{name}_percent"] = float(density[over].sum()) / total if total > 0 else 0.0
    return made


def _rounded(value: float) -> float:
    return -1.0 if math.isnan(value) else round(value, _DIGITS)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    return -1.0 if isinstance(value, float) and math.isnan(value) else value
