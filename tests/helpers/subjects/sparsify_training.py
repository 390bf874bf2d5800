"""sparsify's Trainer on a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_lm


def sparsify_trainer(folder: Path, optimizer: str, steps: int, **options: Any) -> tuple[Any, list[list[float]]]:
    """(a trainer of one coder, (FVU, AuxK, Multi-TopK's FVU) of every step that it takes from now on).

    A latent is dead after 200 tokens; options are those of the coder's config.
    """
    sparsify = pytest.importorskip("sparsify")
    from datasets import Dataset

    tokens = torch.randint(3, 320, (2 * steps, 32), generator=torch.Generator().manual_seed(0))
    config = sparsify.TrainConfig(
        sparsify.SparseCoderConfig(num_latents=256, k=6, **options), batch_size=2, layers=[1], lr=2e-3,
        log_to_wandb=False, save_dir=str(folder), save_every=10**9, auxk_alpha=1 / 4, optimizer=optimizer,
        dead_feature_threshold=200, lr_warmup_steps=2,
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": tokens.tolist()}).with_format("torch")
    trainer = sparsify.Trainer(config, data, tiny_lm.model())
    (coder,) = trainer.saes.values()
    losses: list[list[float]] = []
    coder.register_forward_hook(lambda module, given, out: losses.append([float(one.detach()) for one in out[-3:]]))
    return trainer, losses
