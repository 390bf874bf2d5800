"""sparsify's Trainer on a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

import tiny_lm


def sparsify_trainer(
    folder: Path, optimizer: str, steps: int, apart: bool = False, **options: Any
) -> tuple[Any, list[list[float]]]:
    """(a trainer of one coder, (FVU, AuxK, Multi-TopK's FVU) of every step that it takes from now on).

    A latent is dead after 200 tokens; options are those of the coder's config. In a process group each rank has texts
    of its own; `apart`: and a coder of its own, of two layers.
    """
    sparsify = pytest.importorskip("sparsify")
    from datasets import Dataset

    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    tokens = torch.randint(3, 320, (2 * steps * ranks, 32), generator=torch.Generator().manual_seed(0))
    config = sparsify.TrainConfig(
        sparsify.SparseCoderConfig(num_latents=256, k=6, **options), batch_size=2, layers=[0, 1][not apart :],
        lr=2e-3, log_to_wandb=False, save_dir=str(folder), save_every=10**9, auxk_alpha=1 / 4, optimizer=optimizer,
        dead_feature_threshold=200, lr_warmup_steps=2, distribute_modules=apart,
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": tokens.tolist()}).with_format("torch")
    if ranks > 1:
        data = data.shard(ranks, distributed.get_rank())
    trainer = sparsify.Trainer(config, data, tiny_lm.model())
    (coder,) = trainer.saes.values()
    losses: list[list[float]] = []
    coder.register_forward_hook(lambda module, given, out: losses.append([float(one.detach()) for one in out[-3:]]))
    return trainer, losses
